"""The matrix products of named models, layer by layer, as a load that a fetch can hide behind.

Products of activations with weights alone: attention over the context, norms, routing and sampling are left out, so a
load is lighter than its model and hides less. Nothing here fetches or times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from engram_tables.errors import InvalidInput

# Sets of weights that the blocks use in turn: enough that each product reads its weights from memory, not from a cache.
_WEIGHT_SETS = 2
_UNIT = 16
_STANDARD_DEVIATION = 0.02


class Product(NamedTuple):
    """Activations (tokens x per_token, inputs) by weights (inputs, outputs)."""

    name: str
    inputs: int
    outputs: int
    per_token: int = 1

    @property
    def flop_per_token(self) -> int:
        """Multiplications and additions."""
        return 2 * self.inputs * self.outputs * self.per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model's sizes.

    Attributes
    ----------
    provenance
        Where the sizes come from, and what is not certain of them.
    blocks
        Number of layers, all alike.
    products
        Of one block.
    head
        The product after the last block, made for tokens that are decoded.
    memory_blocks
        Positions of the blocks that read the table, in the order of the table's layers.
    memory_outputs
        Outputs of the product that takes a token's decoded rows, of one table layer: a value and its keys.
    width_divisor
        What every width was divided by; 1 is the model itself.
    """

    name: str
    provenance: str
    blocks: int
    products: tuple[Product, ...]
    head: Product
    memory_blocks: tuple[int, ...]
    memory_outputs: int
    width_divisor: int = 1

    @property
    def flop_per_token(self) -> int:
        """Of all blocks and the head, without the memory's products."""
        return self.blocks * sum(product.flop_per_token for product in self.products) + self.head.flop_per_token

    def narrowed(self, divisor: int) -> ModelShape:
        """Every width divided and rounded to a multiple of 16, the vocabulary's included."""
        if divisor < 1:
            raise InvalidInput(f"width divisor: found {divisor}, expected 1 or more")
        if divisor == 1:
            return self

        def narrow(width: int) -> int:
            return max(_UNIT, round(width / divisor / _UNIT) * _UNIT)

        def narrow_product(product: Product) -> Product:
            return product._replace(inputs=narrow(product.inputs), outputs=narrow(product.outputs))

        return replace(
            self,
            products=tuple(narrow_product(product) for product in self.products),
            head=narrow_product(self.head),
            memory_outputs=narrow(self.memory_outputs),
            width_divisor=self.width_divisor * divisor,
        )

    def cut(self, share: float) -> ModelShape:
        """A share of the blocks, one at least; a block that reads the table and would be cut off is the last one."""
        if not 0 < share <= 1:
            raise InvalidInput(f"load share: found {share}, expected more than 0 and 1 at most")
        blocks = max(1, round(self.blocks * share))
        return replace(self, blocks=blocks, memory_blocks=tuple(min(block, blocks - 1) for block in self.memory_blocks))

    def reading(self, layer_ids: Sequence[int]) -> ModelShape:
        """The model with a table whose layers are these: as many of them as it has, in the blocks of its own where it
        names them, otherwise in those that the layer ids say."""
        blocks = [*self.memory_blocks, *layer_ids[len(self.memory_blocks) :]][: len(layer_ids)]
        return replace(self, memory_blocks=tuple(min(block, self.blocks - 1) for block in blocks))

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return {
            "name": self.name,
            "provenance": self.provenance,
            "blocks": self.blocks,
            "products": [product._asdict() for product in self.products],
            "head": self.head._asdict(),
            "memory_blocks": list(self.memory_blocks),
            "memory_outputs": self.memory_outputs,
            "width_divisor": self.width_divisor,
            "is_scaled": self.width_divisor != 1,
            "flop_per_token": self.flop_per_token,
            "weight_sets": min(_WEIGHT_SETS, self.blocks),
            "left_out": "attention over the context, norms, activations, routing, sampling",
        }


def _dense(name: str, of: str, *, blocks: int, hidden: int, inner: int, heads: int, kv_heads: int) -> ModelShape:
    head_width = 128
    return ModelShape(
        name=name,
        provenance=f"config.json of {of}, which the paper's harness runs; its dense models' sizes are not published",
        blocks=blocks,
        products=(
            Product("query, key, value", hidden, (heads + 2 * kv_heads) * head_width),
            Product("attention output", heads * head_width, hidden),
            Product("gate, up", hidden, 2 * inner),
            Product("down", inner, hidden),
        ),
        head=Product("vocabulary", hidden, 151_936),
        memory_blocks=(1,),
        memory_outputs=2 * hidden,
    )


MODEL_SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _dense("engram-paper-4b", "Qwen3-4B", blocks=36, hidden=2560, inner=9728, heads=32, kv_heads=8),
        _dense("engram-paper-8b", "Qwen3-8B", blocks=36, hidden=4096, inner=12_288, heads=32, kv_heads=8),
        ModelShape(
            name="deepseek-v4.1-flash",
            provenance="config.json of DeepSeek-V4.1-Flash; its decoding pass, one set of experts for every token",
            blocks=40,
            products=(
                Product("query down", 5120, 1280),
                Product("query up", 1280, 64 * 512),
                Product("key and value", 5120, 512),
                # Eight groups of heads have each their own output product.
                Product("attention output down", 64 * 512 // 8, 1024, 8),
                Product("attention output up", 8 * 1024, 5120),
                Product("router", 5120, 384),
                Product("experts' gate, up", 5120, 2 * 2304, 7),
                Product("experts' down", 2304, 5120, 7),
            ),
            head=Product("vocabulary", 5120, 129_280),
            memory_blocks=(1, 14),
            memory_outputs=5 * 5120,
        ),
    )
}


class Load:
    """A shape's products, run on `xp` (NumPy, or CuPy with its current device and stream), block by block.

    Weights and activations are drawn once, small enough that nothing overflows, and every product writes into memory
    that is there already. They are random, since a device multiplies equal numbers faster than a model's.
    """

    def __init__(self, xp: Any, shape: ModelShape, *, max_tokens: int, memory_inputs: int, dtype: str) -> None:
        self._xp, self._dtype, self._rng = xp, dtype, xp.random.default_rng(0)
        self.shape = shape
        products = (*shape.products, shape.head)
        widest = max(product.inputs for product in products)
        most_rows = max_tokens * max(product.per_token for product in products)
        self._weights = [[self._made(product) for product in shape.products] for _ in range(self._n_sets())]
        self._head = self._made(shape.head)
        self._memory = self._made(Product("memory", memory_inputs, shape.memory_outputs))
        self._inputs = self._drawn((most_rows * widest,))
        # Written once, so that no product pays for the memory's first touch.
        self._outputs = xp.ones(max(p.outputs * p.per_token for p in products) * max_tokens, dtype)
        self._remembered = xp.ones((max_tokens, shape.memory_outputs), dtype)

    def block(self, nth: int, n_tokens: int) -> None:
        """All products of the `nth` block."""
        weights = self._weights[nth % len(self._weights)]
        for product, of_product in zip(self.shape.products, weights, strict=True):
            self._multiply(product, of_product, n_tokens)

    def head(self, n_tokens: int) -> None:
        """The product after the last block."""
        self._multiply(self.shape.head, self._head, n_tokens)

    def remember(self, values: Any) -> None:
        """The product of decoded rows, (tokens, columns x row_width)."""
        self._xp.matmul(values.astype(self._dtype, copy=False), self._memory, out=self._remembered[: len(values)])

    def _n_sets(self) -> int:
        return min(_WEIGHT_SETS, self.shape.blocks)

    def _made(self, product: Product) -> Any:
        return self._drawn((product.inputs, product.outputs))

    def _drawn(self, shape: tuple[int, ...]) -> Any:
        values = self._rng.standard_normal(shape, dtype=np.float32)
        values *= _STANDARD_DEVIATION
        return values.astype(self._dtype, copy=False)

    def _multiply(self, product: Product, weights: Any, n_tokens: int) -> None:
        rows = n_tokens * product.per_token
        inputs = self._inputs[: rows * product.inputs].reshape(rows, product.inputs)
        outputs = self._outputs[: rows * product.outputs].reshape(rows, product.outputs)
        self._xp.matmul(inputs, weights, out=outputs)
