"""Decodes tokens to text as they arrive, without splitting a character."""

from __future__ import annotations

from collections.abc import Sequence

from fastattn.errors import InputError
from fastattn.generation.decoders import ReplaceText, make_stages, run_stages
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.ids import CLEAN_UP
from fastattn.tokenizer.library import is_library_error, reason_of


class Detokenizer:
    """`push` each new token id to get the text that can no longer change; `flush` returns the rest.

    All pieces join to `decode(prompt + new)[len(decode(prompt)):]`, decoded by the tokenizer with skip_special_tokens
    and clean_up_tokenization_spaces (None: the tokenizer's setting). The cost of a token does not depend on the number
    of tokens before it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> None:
        self._raw = tokenizer.raw
        self._skip = tokenizer.skipped_ids if skip_special_tokens else frozenset()
        self._stages = make_stages(self._raw)
        if tokenizer.cleans_up(clean_up_tokenization_spaces):
            self._stages += [ReplaceText(old, new) for old, new in CLEAN_UP]
        self._hidden = 0  # number of characters still to come that belong to the prompt
        if prompt:
            self._hidden = len(
                tokenizer.decode(
                    list(prompt),
                    skip_special_tokens=skip_special_tokens,
                    clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                )
            )
            self._advance(prompt)

    def push(self, token_id: int) -> str:
        """Add a token and return the text that it completes: often part of a word, sometimes ""."""
        return self._advance((token_id,))

    def flush(self) -> str:
        """Return the remaining text; an unfinished character becomes U+FFFD."""
        return self._advance((), last=True)

    def _advance(self, ids: Sequence[int], *, last: bool = False) -> str:
        tokens = [self._raw.id_to_token(i) for i in ids if i not in self._skip]
        try:  # a context manager per token would cost more than the stages
            text = run_stages(self._stages, [token for token in tokens if token is not None], last=last)
        except BaseException as error:
            if not is_library_error(error):
                raise
            raise InputError(
                f"token_ids: the tokenizer refuses them: {reason_of(error)}; use the tokenizer of this model"
            ) from error
        if self._hidden:
            hidden = min(self._hidden, len(text))
            self._hidden -= hidden
            text = text[hidden:]
        return text
