# English Wikipedia of November 2023 by characters, the first of 41 files: about 500 million; all of
# them with --max_files=41. The 1,000 commonest characters; the rarer become one. Needs pyarrow.
_folder = 'https://huggingface.co/datasets/wikimedia/wikipedia/resolve/main/20231101.en'
url = [f'{_folder}/train-{_i:05}-of-00041.parquet' for _i in range(41)]
max_files = 1
tokenizer = 'char'
max_vocab = 1000
val_fraction = 0.005
