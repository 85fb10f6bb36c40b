"""From a parameter budget to the rows, heads and bytes of a table, beside what the paper found about such budgets.

Arithmetic over a recipe's primes and published figures; no loss is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engram_tables.address.recipes import DeepSeekRecipe, Outline
from engram_tables.errors import InvalidInput
from engram_tables.measure.environment import command_line
from engram_tables.storage.codecs.codec import get_codec

ALLOCATE_SCHEMA = "engram.plan-allocate/1"
RULE_SHARES = (0.20, 0.25)
CODECS = ("bf16",)
_PAPER = "arXiv 2601.07372"

PUBLISHED: dict[str, Any] = {
    "source": _PAPER,
    "rule": {
        "where": f"{_PAPER}, 3.1",
        "best_shares_of_sparse_parameters": list(RULE_SHARES),
        "swept": [
            {"training_flop": 2e20, "total_parameters": 5_700_000_000, "active_parameters": 568_000_000},
            {"training_flop": 6e20, "total_parameters": 9_900_000_000, "active_parameters": 993_000_000},
        ],
        "loss_without_table": 1.7248,
        "loss_at_best_share": 1.7109,
        "note": "validation loss of the larger sweep; total over active parameters is about 10 throughout, and a table "
        "with 60 % of the sparse parameters still equals experts alone",
    },
    "slot_sweep": {
        "where": f"{_PAPER}, 3.2",
        "fewest_slots": 258_000,
        "most_slots": 10_000_000,
        "backbone_total_parameters": 3_000_000_000,
        "backbone_active_parameters": 568_000_000,
        "training_tokens": 100_000_000_000,
        "parameters_per_slot": 1280,
        "note": "loss falls in a straight line over the logarithm of the slots in this range; no slope is published",
    },
    "models": [
        {"name": "engram-27b", "table_parameters": 5_700_000_000, "validation_loss": 1.622},
        {"name": "engram-40b", "table_parameters": 18_500_000_000, "validation_loss": 1.610},
        {"name": "the same without a table (MoE-27B)", "table_parameters": 0, "validation_loss": 1.634},
    ],
}
"""What the paper says, with its own figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Parameters to spend.

    Attributes
    ----------
    table_parameters
        Of the table itself; or None, and a share of the sparse parameters of a model is meant.
    total_parameters, active_parameters
        Of the whole model, table included, and of those a token uses.
    shares
        Of the sparse parameters, total - active, that the table gets.
    """

    table_parameters: int | None = None
    total_parameters: int | None = None
    active_parameters: int | None = None
    shares: tuple[float, ...] = RULE_SHARES

    def amounts(self) -> list[tuple[float | None, int]]:
        """(share of the sparse parameters, parameters of the table), ascending."""
        sparse = self.sparse_parameters
        if self.table_parameters is not None:
            if self.table_parameters < 1:
                raise InvalidInput(f"parameters: found {self.table_parameters}, expected 1 or more; correct it")
            if sparse is not None and self.table_parameters > sparse:
                raise InvalidInput(
                    f"parameters: found {self.table_parameters} of the table, expected {sparse} (total - active) at "
                    "most; correct one of them"
                )
            return [(None if sparse is None else self.table_parameters / sparse, self.table_parameters)]
        if sparse is None:
            raise InvalidInput(
                "budget: found neither --parameters nor --total and --active, expected one of them; what is "
                "to be spent?"
            )
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise InvalidInput(f"shares: found {list(self.shares)}, expected more than 0 and 1 at most; correct them")
        return [(share, round(sparse * share)) for share in sorted(set(self.shares))]

    @property
    def sparse_parameters(self) -> int | None:
        """Those that a token does not use; None if unknown."""
        if self.total_parameters is None and self.active_parameters is None:
            return None
        if self.total_parameters is None or self.active_parameters is None:
            raise InvalidInput(
                "budget: found one of --total and --active, expected both or neither; give the other one"
            )
        if not 0 <= self.active_parameters < self.total_parameters:
            raise InvalidInput(
                f"budget: found {self.active_parameters} active of {self.total_parameters} parameters, expected fewer "
                "active than in all; exchange them?"
            )
        return self.total_parameters - self.active_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShape:
    """What a table has beside its rows.

    Attributes
    ----------
    row_width
        Values of a row: one head's share of an n-gram's vector.
    """

    orders: tuple[int, ...] = (2, 3)
    heads: int = 8
    n_layers: int = 2
    row_width: int = 80

    @property
    def n_columns(self) -> int:
        """Rows read for one token, from all layers."""
        return self.n_layers * len(self.orders) * self.heads


def allocate(
    budget: Budget, shape: TableShape, *, codecs: Sequence[str] = CODECS, rows_per_head: int | None = None
) -> dict[str, Any]:
    """The tables that a budget buys; the record is an `engram.plan-allocate/1`.

    Parameters
    ----------
    codecs
        Whose bytes are told.
    rows_per_head
        In place of a budget: the least prime of a head, as a config has it.

    Raises
    ------
    InvalidInput
        A budget of fewer than two rows a head, figures that contradict each other, a codec that the width does not
        suit.
    """
    if not shape.orders or list(shape.orders) != sorted(set(shape.orders)):
        raise InvalidInput(f"orders: found {list(shape.orders)}, expected some that ascend; name each once, as 2,3")
    if rows_per_head is not None:
        tables = [_table(rows_per_head, None, None, shape, codecs)]
    else:
        tables = [_bought(share, amount, shape, codecs) for share, amount in budget.amounts()]
    return {
        "schema": ALLOCATE_SCHEMA,
        "command": command_line(),
        "budget": {
            "table_parameters": budget.table_parameters,
            "total_parameters": budget.total_parameters,
            "active_parameters": budget.active_parameters,
            "sparse_parameters": budget.sparse_parameters,
            "rows_per_head": rows_per_head,
        },
        "shape": {
            "orders": list(shape.orders),
            "heads_per_order": shape.heads,
            "n_layers": shape.n_layers,
            "row_width": shape.row_width,
            "rows_per_token": shape.n_columns,
        },
        "tables": tables,
        "published": PUBLISHED,
    }


def _outline(rows_per_head: int, shape: TableShape) -> Outline:
    """Of DeepSeek's rule: every head has a prime of its own, the smallest unused one from `rows_per_head` on."""
    return DeepSeekRecipe(
        name="allocation", provenance="a parameter budget", canonical_size=1, orders=shape.orders, heads=shape.heads,
        bases=(rows_per_head,) * len(shape.orders), layer_ids=None, n_layers=shape.n_layers, fill_id=0,
        row_width=shape.row_width,
    ).outline()  # fmt: skip


def _bought(share: float | None, parameters: int, shape: TableShape, codecs: Sequence[str]) -> dict[str, Any]:
    """The largest table whose parameters do not pass the budget.

    Notes
    -----
    Primes lie above their base, so parameters / (columns x width) is an upper bound of it; the base goes down by what
    the primes have too many until they fit, a few times at most.
    """
    if shape.row_width < 1 or shape.n_columns < 1:
        raise InvalidInput(
            f"table: found rows of {shape.row_width} values in {shape.n_columns} columns; give 1 or more"
        )
    most_rows = parameters // shape.row_width
    rows_per_head = most_rows // shape.n_columns
    while rows_per_head >= 2:
        excess = _outline(rows_per_head, shape).n_rows - most_rows
        if excess <= 0:
            return _table(rows_per_head, share, parameters, shape, codecs)
        rows_per_head -= max(1, excess // (2 * shape.n_columns))
    raise InvalidInput(
        f"parameters: found {parameters}, expected enough for two rows of {shape.row_width} values under each of "
        f"{shape.n_columns} heads; take fewer heads or narrower rows"
    )


def _table(
    rows_per_head: int, share: float | None, parameters: int | None, shape: TableShape, codecs: Sequence[str]
) -> dict[str, Any]:
    outline = _outline(rows_per_head, shape)
    of_codecs = []
    for name in codecs:
        row_bytes = get_codec(name).row_bytes(shape.row_width)
        of_codecs.append(
            {
                "codec": name,
                "row_bytes": row_bytes,
                "table_bytes": outline.n_rows * row_bytes,
                "bytes_per_token": outline.rows_per_token * row_bytes,
            }
        )
    # A slot is a whole n-gram vector: a row under every head of every order.
    slots = outline.n_rows // sum(outline.heads)
    return {
        "share_of_sparse_parameters": share,
        "budget_parameters": parameters,
        "parameters": outline.n_rows * shape.row_width,
        "n_rows": outline.n_rows,
        "rows_per_table": list(outline.rows_per_table),
        "rows_per_head": rows_per_head,
        "slots": slots,
        "slots_against_sweep": _against_sweep(slots),
        "codecs": of_codecs,
    }


def _against_sweep(slots: int) -> str:
    """Where a table lies beside the slots that were swept."""
    sweep = PUBLISHED["slot_sweep"]
    if slots < sweep["fewest_slots"]:
        return "below"
    return "inside" if slots <= sweep["most_slots"] else "beyond"
