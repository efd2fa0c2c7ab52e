# Tiny Shakespeare, 1.1 MB of the plays, by characters (65 distinct): the classic first corpus.
url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
file = 'tinyshakespeare.txt'
tokenizer = 'char'
