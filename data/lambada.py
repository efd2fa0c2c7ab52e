# LAMBADA (Paperno et al. 2016, arXiv:1606.06031) as GPT-2 was tested on it: 5,153 passages whose
# last word needs the whole passage; data/lambada/lambada_test.jsonl is what to evaluate on.
url = 'https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl'
tokenizer = 'gpt2'
