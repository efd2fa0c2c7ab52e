# FineWeb (Penedo et al. 2024, arXiv:2406.17557), the sample of 10 billion GPT-2 tokens: English
# web pages, 2 GB a file. --max_files=1 takes a fifteenth of it. Needs pyarrow.
_folder = 'https://huggingface.co/datasets/HuggingFaceFW/fineweb/resolve/main/sample/10BT'
url = [f'{_folder}/{_i:03}_00000.parquet' for _i in range(15)]
tokenizer = 'gpt2'
val_fraction = 0.001
