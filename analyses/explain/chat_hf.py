"""Language models from a folder of local transformers weights: safetensors alone, no code from the folder, no network.

Log-probabilities are exact, from the logits over the whole vocabulary (which transformers gives in float32); every
token that spells a single digit is among the alternatives, however improbable, so that an expected digit needs no luck
with the most probable ones.

A conversation goes through the tokenizer's own template; without one as `User: ...` and `Assistant: ...`. What the
messages say is tokenized apart from the template, so that no text in them becomes a special token.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.explain.chat import ChatError, ChatReply, ChatRequest, Message, NoReply, OneByOne, TokenLogprob, Usage
from sat_lens.files import sha256_file

_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


class HfChat(OneByOne):
    """A model and its tokenizer from a folder.

    Args:
        folder: with `config.json`, a tokenizer and `*.safetensors`.
        device: of the model.
        batch: requests in a forward pass; those that sample (temperature above 0) go alone, each with a seed that is
            the request's own.
        dtype: of the weights, such as `float32`; None: as they are stored.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without safetensors, or one that transformers cannot load by itself.
    """

    def __init__(self, folder: Path | str, device: str = "cpu", batch: int = 8, dtype: str | None = None) -> None:
        self.folder = Path(folder)
        if batch < 1:
            raise ValueError(f"batch must be at least 1 request; got {batch}")
        if not self.folder.is_dir():
            raise FileNotFoundError(f"a local model must be a folder of weights; there is no folder {folder}")
        if not (weights := sorted(self.folder.glob("*.safetensors"))):
            raise ValueError(f"a local model must have *.safetensors; {folder} has none")
        if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype must be one of torch's, such as float32; got {dtype!r}")
        self.batch, self.device, self.dtype = batch, device, dtype
        self.model, self.tokenizer = _loaded(self.folder, dtype)
        self.model.to(device).eval()
        files = [*weights, *(self.folder / name for name in ("config.json", "tokenizer.json", "chat_template.jinja"))]
        hashes = {file.name: sha256_file(file) for file in files if file.is_file()}
        self._sha256 = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode("ascii")).hexdigest()
        self.n_ctx = int(getattr(self.model.config, "max_position_embeddings", 0) or 2**20)
        ids = range(min(len(self.tokenizer), self.model.get_output_embeddings().weight.shape[0]))
        self.texts = [self.tokenizer.decode([i]) for i in ids]
        self.ids: dict[str, list[int]] = {}
        for i, text in enumerate(self.texts):
            self.ids.setdefault(text, []).append(i)
        self.digits = [text for text in self.ids if text.strip() in tuple("0123456789")]
        stop = self.model.generation_config.eos_token_id
        self.stop = {*(stop if isinstance(stop, list) else [stop]), self.tokenizer.eos_token_id} - {None}

    @property
    def name(self) -> str:
        """`hf:` and the folder's name."""
        return f"hf:{self.folder.resolve().name}"

    @property
    def identity(self) -> dict[str, Any]:
        """Hash of weights, configuration and tokenizer, and the type of the numbers."""
        return {"kind": "hf", "sha256": self._sha256, "dtype": str(self.model.dtype)}

    def answer(self, request: ChatRequest) -> ChatReply:
        """The reply to one request."""
        reply = self.answers([request])[0]
        if isinstance(reply, NoReply):
            raise reply
        return reply

    def answers(self, requests: Sequence[ChatRequest]) -> list[ChatReply | NoReply]:
        """The reply to each, those that do not sample together. Cost: one forward pass a token of the longest."""
        found: dict[int, ChatReply | NoReply] = {}
        together: list[int] = []
        prompts = [self.prompt(request.messages) for request in requests]
        for i, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            if len(prompt) + request.max_tokens > self.n_ctx:
                taken = f"{len(prompt):,} tokens and {request.max_tokens:,} of a reply"
                found[i] = NoReply(f"the model's context holds {self.n_ctx:,} tokens; the request takes {taken}")
            elif request.temperature > 0:
                found[i] = self._generated([request], [prompt])[0]
            else:
                together.append(i)
        if together:
            given = self._generated([requests[i] for i in together], [prompts[i] for i in together])
            found |= dict(zip(together, given, strict=True))
        return [found[i] for i in range(len(requests))]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the next turn begins."""
        nonce = secrets.token_hex(8)
        named = [f"@{nonce}.{i}@" for i in range(len(messages))]
        turns = [{"role": m.role, "content": name} for m, name in zip(messages, named, strict=True)]
        frame, special = self._frame(turns)
        ids: list[int] = []
        for name, message in zip(named, messages, strict=True):
            before, found, frame = frame.partition(name)
            if not found:
                raise ChatError(f"the chat template of {self.folder} leaves out or reorders turns")
            ids += self._ids(before, special) + self._ids(message.content, False)
        ids += self._ids(frame, special)
        start = self.tokenizer.bos_token_id
        return ids if special or start is None else [start, *ids]

    def _frame(self, turns: list[dict[str, str]]) -> tuple[str, bool]:
        """The conversation as text, and whether a template made it."""
        if not self.tokenizer.chat_template:
            return "".join(f"{_ROLES[t['role']]}: {t['content']}\n\n" for t in turns) + "Assistant:", False
        knobs: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        try:
            return self.tokenizer.apply_chat_template(turns, **knobs), True
        except Exception as error:  # a template may raise what it likes, and some refuse a system's turn
            if [t["role"] for t in turns[:2]] != ["system", "user"]:
                raise ChatError(f"the chat template of {self.folder} fails: {type(error).__name__}") from None
        merged = {"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        return self._frame([merged, *turns[2:]])

    def _ids(self, text: str, special: bool) -> list[int]:
        if not text:
            return []
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"])

    @torch.inference_mode()
    def _generated(self, requests: Sequence[ChatRequest], prompts: Sequence[list[int]]) -> list[ChatReply]:
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        tokens = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.device)
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        temperature, longest = requests[0].temperature, max(r.max_tokens for r in requests)
        knobs: dict[str, Any] = {"max_new_tokens": longest, "pad_token_id": pad, "use_cache": True}
        knobs |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        knobs |= {"eos_token_id": sorted(self.stop)} if self.stop else {}
        wanted = GenerationConfig(return_dict_in_generate=True, output_logits=True, **knobs)
        with torch.random.fork_rng(devices=[self.device] if self.device.startswith("cuda") else []):
            torch.manual_seed(int(requests[0].key()[:12], 16))
            out = self.model.generate(tokens, attention_mask=seen, generation_config=wanted)
        logprobs = torch.stack([step.double().log_softmax(-1) for step in out.logits], 1)
        return [
            self._reply(request, out.sequences[i, width:], logprobs[i], len(prompts[i]))
            for i, request in enumerate(requests)
        ]

    def _reply(
        self, request: ChatRequest, written: Int[Tensor, " step"], logprobs: Float[Tensor, "step id"], n_prompt: int
    ) -> ChatReply:
        ids: list[int] = []
        finish = "length"
        for token in written[: request.max_tokens].tolist():
            if token in self.stop:
                finish = "stop"
                break
            ids.append(token)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        found = None
        if request.top_logprobs:
            n_steps = min(max(len(ids), 1), len(logprobs))  # where it ends at once: what might have been
            found = tuple(
                self._logprob(step, at, request.top_logprobs)
                for step, at in zip(logprobs[:n_steps], written.tolist(), strict=False)
            )
        return ChatReply(text, found, Usage(n_prompt, len(ids)), finish)

    def _logprob(self, step: Float[Tensor, " id"], token: int, n: int) -> TokenLogprob:
        """Of one token; in the alternatives ids of one text count together."""
        best = step[: len(self.texts)].topk(min(n, len(self.texts))).indices.tolist()
        wanted = dict.fromkeys([*(self.texts[i] for i in best), *self.digits])
        top = {text: float(step[self.ids[text]].logsumexp(0)) for text in wanted}
        return TokenLogprob(
            self._text(token), min(float(step[token]), 0.0), tuple((text, min(p, 0.0)) for text, p in top.items())
        )

    def _text(self, token: int) -> str:
        return self.texts[token] if token < len(self.texts) else f"id {token}"


def _loaded(folder: Path, dtype: str | None) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **local)
        model = AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True, dtype=dtype or "auto", **local)
    except Exception as error:  # whatever a folder of any content makes transformers raise
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} is no model that transformers loads by itself: {words}") from None
    finally:
        if had_bars:
            logging.enable_progress_bar()
    return model, tokenizer
