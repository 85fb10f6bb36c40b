"""What is asked of a machine: rates, streams, and when in a step each layer wants its rows.

It knows no machine and no table beyond the layers that read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engram_tables.errors import InvalidInput
from engram_tables.measure.model_shapes import MODEL_SHAPES, ModelShape
from engram_tables.measure.planning.figures import Figure, Origin, check_figure, given

MOST_LOSS = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a plan is for.

    Attributes
    ----------
    tokens_per_s
        Decoded by all streams together; None where nobody asked for a rate.
    streams
        Sequences decoded at the same time: a step makes a token of each.
    step_us
        Of a decoding step without any waiting for rows; None if unknown.
    prefill_tokens_per_s, chunk_tokens
        Prompt tokens beside decoding, and how many of them are looked up at once.
    model_layers
        Decoder layers; None if unknown, and rows are wanted when a step begins then.
    most_loss
        Share of a step's time that waiting for rows may take.
    """

    tokens_per_s: float | None = None
    streams: int = 1
    step_us: Figure | None = None
    prefill_tokens_per_s: float | None = None
    chunk_tokens: int = 512
    model_layers: Figure | None = None
    most_loss: float = MOST_LOSS

    def __post_init__(self) -> None:
        for name, figure in (
            ("tokens/s", self.tokens_per_s),
            ("streams", self.streams),
            ("step time", None if self.step_us is None else self.step_us.value),
            ("prefill tokens/s", self.prefill_tokens_per_s),
            ("chunk tokens", self.chunk_tokens),
            ("model layers", None if self.model_layers is None else self.model_layers.value),
        ):
            if figure is not None:
                check_figure(figure, name)
        if not 0 <= self.most_loss < 1:
            raise InvalidInput(f"loss: found {self.most_loss}, expected 0 or more and below 1; give a share")

    def slack_us(self, layer_id: int) -> float | None:
        """From a step's beginning, when the rows of its tokens are known, to the layer that wants them; None if the
        step's time is unknown.

        Notes
        -----
        layer_id / model_layers x step: all layers take equally long. 0 where the number of layers is unknown.
        """
        if self.step_us is None:
            return None
        if self.model_layers is None:
            return 0.0
        return min(1.0, layer_id / self.model_layers.value) * self.step_us.value

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        return {
            "tokens_per_s": self.tokens_per_s,
            "streams": self.streams,
            "step_us": None if self.step_us is None else self.step_us.to_json(),
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "chunk_tokens": self.chunk_tokens,
            "model_layers": None if self.model_layers is None else self.model_layers.to_json(),
            "most_loss": self.most_loss,
        }


def make_load(
    *,
    table_name: str,
    tokens_per_s: float | None = None,
    streams: int = 1,
    step_ms: float | None = None,
    compute_flops: float | None = None,
    shape_name: str | None = None,
    model_layers: int | None = None,
    prefill_tokens_per_s: float | None = None,
    chunk_tokens: int = 512,
    most_loss: float = MOST_LOSS,
) -> Load:
    """A load with its step's time from the best source there is.

    Parameters
    ----------
    table_name
        A shape of this name tells the number of layers where nobody gives one.
    step_ms
        Comes first; then a shape's products at `compute_flops`; then the step that makes `tokens_per_s`.
    shape_name
        One of `MODEL_SHAPES`.

    Raises
    ------
    InvalidInput
        A shape that is not known, or figures that are none.
    """
    if shape_name is not None and shape_name not in MODEL_SHAPES:
        raise InvalidInput(f"model shape {shape_name!r}: not known, expected one of {', '.join(MODEL_SHAPES)}")
    shape = MODEL_SHAPES.get(shape_name or table_name)
    if compute_flops is not None and shape is None:
        raise InvalidInput("--compute-tflops: found no model shape, expected one; name it with --model-shape")
    for name, value in (("streams", streams), ("tokens/s", tokens_per_s), ("--compute-tflops", compute_flops)):
        if value is not None:
            check_figure(value, name)
    layers = given(model_layers, "--model-layers") if model_layers is not None else _layers_of(shape)
    step_us = _step_us(shape, tokens_per_s=tokens_per_s, streams=streams, step_ms=step_ms, compute_flops=compute_flops)
    return Load(
        tokens_per_s=tokens_per_s, streams=streams, step_us=step_us, prefill_tokens_per_s=prefill_tokens_per_s,
        chunk_tokens=chunk_tokens, model_layers=layers, most_loss=most_loss,
    )  # fmt: skip


def _layers_of(shape: ModelShape | None) -> Figure | None:
    if shape is None:
        return None
    return Figure(value=shape.blocks, origin=Origin.PUBLISHED, where=f"{shape.name}: {shape.provenance}")


def _step_us(
    shape: ModelShape | None, *, tokens_per_s: float | None, streams: int, step_ms: float | None,
    compute_flops: float | None,
) -> Figure | None:  # fmt: skip
    if step_ms is not None:
        return given(step_ms * 1e3, "--step-ms")
    if compute_flops is not None and shape is not None:
        return Figure(
            value=shape.flop_per_token * streams / compute_flops * 1e6,
            origin=Origin.COMPUTED,
            where=f"products of {shape.name} at --compute-tflops; attention over the context is left out, so a step "
            "takes longer and hides more",
        )
    if tokens_per_s is not None:
        where = "streams / --tokens-per-s: the model alone makes just the rate that is wanted"
        return Figure(value=streams / tokens_per_s * 1e6, origin=Origin.COMPUTED, where=where)
    return None
