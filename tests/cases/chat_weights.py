"""Folders of local transformers weights, small and made on the spot."""

from pathlib import Path
from typing import Any

import torch

TEMPLATE = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content | trim }}<|end|>{% endfor %}<|turn|>assistant:"


def tiny_tokenizer(*added: str) -> Any:
    """A byte-level tokenizer trained on a few lines, with a template; token 0 ends an answer.

    Args:
        added: texts that are one token each.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<|turn|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["Say 7 or 3 and 12 of the cat.", "User: a\n\nAssistant: 5 5 5"] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE)
    fast.add_tokens(list(added))
    return fast


def random_weights(path: Path) -> Path:
    """A random GPT-2 of two layers in float64."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=96, n_embd=16, n_layer=2, n_head=2,
                        initializer_range=0.5, eos_token_id=0, bos_token_id=None)  # fmt: skip
    GPT2LMHeadModel(config).double().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def single_minded_weights(path: Path, answer: str, digit: str) -> Path:
    """A GPT-2 whose answer to everything is one text; where a digit is looked for, this one is the most probable.

    No attention and no MLP: after the last token of a prompt the answer, whole, has the logit 8, the digit 5.6 and all
    others 0; after the answer comes the end.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer(answer)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=8192, n_embd=8, n_layer=1, n_head=1, eos_token_id=0,
                        bos_token_id=None, tie_word_embeddings=False)  # fmt: skip
    model = GPT2LMHeadModel(config)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    (last,) = tokenizer(asked[-1], add_special_tokens=False).input_ids
    said, number = (tokenizer(text, add_special_tokens=False).input_ids[0] for text in (answer, digit))
    direction = torch.nn.functional.layer_norm(torch.eye(8), (8,))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        model.transformer.wte.weight[:, 0] = 1.0
        for row, token in ((1, last), (2, said)):
            model.transformer.wte.weight[token] = torch.eye(8)[row]
        model.lm_head.weight[said] = direction[1]
        model.lm_head.weight[number] = 0.7 * direction[1]
        model.lm_head.weight[0] = direction[2]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
