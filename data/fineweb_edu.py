# FineWeb-Edu (Penedo et al. 2024, arXiv:2406.17557), the sample of 10 billion GPT-2 tokens: web
# pages that teach, 2 GB a file. --max_files=1 takes a fourteenth of it. Needs pyarrow.
_folder = 'https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu/resolve/main/sample/10BT'
url = [f'{_folder}/{_i:03}_00000.parquet' for _i in range(14)]
tokenizer = 'gpt2'
val_fraction = 0.001
