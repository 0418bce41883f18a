"""The command `fastattn chat`."""

from __future__ import annotations

import argparse
from typing import Any

from fastattn.cli.commands import check_top_logprobs, json_line, load_assistant
from fastattn.cli.flags import given_options
from fastattn.cli.grammars import read_grammars
from fastattn.cli.streams import emit
from fastattn.cli.texts import stream_texts
from fastattn.errors import ContextLengthError
from fastattn.generation.generate import need_tokenizer, stream
from fastattn.generation.options import GenerationOptions, read_options
from fastattn.generation.prompts import encode_prompt
from fastattn.tasks.completion import Tokens, chat_logprobs


def chat(args: argparse.Namespace) -> int:
    """Answer messages, one per line, in one conversation. Every answer is printed as it is generated."""
    from fastattn.api.auto import AutoModelForCausalLM
    from fastattn.api.load_options import LoadOptions

    options: dict[str, Any] = {**given_options(GenerationOptions, args), "do_sample": True, "use_model_defaults": False}
    options |= read_grammars(options)
    checked = read_options({**options, "assistant_model": None}, "chat")
    check_top_logprobs(checked, args)
    n_top = checked.top_logprobs
    texts = stream_texts(args.prompt, args.file, skip_blank=True)
    messages: list[dict[str, str]] = [] if args.system is None else [{"role": "system", "content": args.system}]
    model = AutoModelForCausalLM.from_pretrained(args.model, **given_options(LoadOptions, args))
    options["assistant_model"] = load_assistant(args)
    tokenizer, context = need_tokenizer(model, "chat"), model.executor.program.max_positions
    for text in texts.texts:
        messages.append({"role": "user", "content": text.text})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = encode_prompt(tokenizer, prompt, text.where, add_special_tokens=False)
        room = context - len(ids)
        if room < 1:
            raise ContextLengthError(
                f"{text.where}: expected a conversation of fewer than {context} tokens, the model's context, got "
                f"{len(ids)}"
            )
        limit = min(args.max_new_tokens, room)
        answer = ""
        with stream(model, ids, logprobs=n_top > 0, **{**options, "max_new_tokens": limit}) as pieces:
            for piece in pieces:
                answer += piece
                if not args.json:
                    emit(piece, end="", flush=True)
        messages.append({"role": "assistant", "content": answer})
        if args.json:
            line: dict[str, Any] = {**messages[-1], "finish_reason": pieces.finish_reason}
            if n_top:
                tokens = Tokens.between(pieces, len(ids), 0, pieces.n_new_tokens)
                line |= chat_logprobs(tokenizer, tokens, n_top, name="logprobs")
            emit(json_line(line), flush=True)
        else:
            emit(flush=True)
    return 0
