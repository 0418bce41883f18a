"""Pictures of what a model does, inspired by Jay Alammar's.

They are single HTML or SVG files that load nothing from the network.
"""

from fastattn.viz.alignment_view import alignment
from fastattn.viz.attention_view import attention
from fastattn.viz.embeddings_view import embeddings
from fastattn.viz.lens_view import next_tokens
from fastattn.viz.look import look
from fastattn.viz.picture import Picture
from fastattn.viz.surprisal_view import surprisal
from fastattn.viz.tokens_view import tokens

__all__ = ["Picture", "alignment", "attention", "embeddings", "look", "next_tokens", "surprisal", "tokens"]
