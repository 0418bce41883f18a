"""OLMo 2 (OLMo et al. 2024): norms after attention and MLP instead of before them, and norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.graph.ir import Program
from fastattn.graph.kinds import embedding, rms_norm
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import architectures, gated_mlp, head_matrix, outputs
from fastattn.models.config import ConfigReader
from fastattn.models.llama import HARMLESS, LlamaConfig, attend, read_sizes
from fastattn.models.tasks import Task

ARCHITECTURES = architectures("Olmo2")


def read_config(raw: Mapping[str, object]) -> LlamaConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "OLMo 2")
    sizes = read_sizes(c, intermediate_size=11008, positions=2048, null_head_dim=False, eps=1e-5)
    layers, bias = sizes["num_hidden_layers"], c.flag("attention_bias", False)
    config = LlamaConfig(
        **sizes,
        attention_bias=bias,
        output_bias=bias,
        qk_norm="row",
        windows=(0,) * layers,
        rotates=(True,) * layers,
        **c.common("olmo2", c.size("vocab_size", 50304), eos=50279, pad=1),
    )
    c.finish(HARMLESS)
    return config


def transformer(cfg: LlamaConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size]."""
    eps = cfg.rms_norm_eps
    h = embedding(w["embed_tokens"], t.ids, cfg.vocab_size, cfg.hidden_size)
    for i in range(cfg.num_hidden_layers):
        b, h = w[f"layers.{i}"], hidden_state(h)
        h = h + rms_norm(attend(cfg, w, h, i), b["post_attention_layernorm"], eps)
        m = gated_mlp(h, b["mlp"], cfg.intermediate_size, cfg.hidden_act)
        h = h + rms_norm(m, b["post_feedforward_layernorm"], eps)
    return hidden_state(rms_norm(h, w["norm"], eps))


def build(cfg: LlamaConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task; see `outputs`."""
    head = head_matrix(cfg, w, w["embed_tokens"])
    h = transformer(cfg, w, Tokens())
    return w.tracer.program(outputs(cfg, w, h, task, head), cfg.max_positions)
