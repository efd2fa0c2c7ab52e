# OpenWebText (Gokaslan & Cohen 2019), the open copy of GPT-2's corpus: 8,013,769 documents, 38 GB
# of text, about 9 billion tokens. --max_files=1 takes an eightieth of it. Needs pyarrow.
_folder = 'https://huggingface.co/datasets/Skylion007/openwebtext/resolve/main/plain_text'
url = [f'{_folder}/train-{_i:05}-of-00080.parquet' for _i in range(80)]
tokenizer = 'gpt2'
val_fraction = 0.0005
