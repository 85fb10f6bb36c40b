"""One spec as a C header that needs nothing but a compiler: constants, hash, golden cases as its self-test.

C99 that is C++11 too, without extensions of a compiler or undefined behaviour. What it computes is what `reference.py`
says; the tests compile it and hold it against the kernels.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from string import Template

from engram_tables.address.export import c_templates as templates
from engram_tables.address.golden.cases import golden_cases
from engram_tables.address.spec import AddressSpec, Family, KeyForm, LayerAddressing
from engram_tables.errors import InvalidInput

_LINE_CHARACTERS = 110
_MAX_PREFIX_CHARACTERS = 60
_WORD_BITS = 64
_LARGEST_CHUNK = 3
"""Tokens that the self-test hashes in one call: 1, 2 and 3 in turn."""


def c_header(spec: AddressSpec, *, prefix: str | None = None) -> str:
    """A self-contained C99 header, also valid C++11, that computes the addresses of `spec`.

    Parameters
    ----------
    prefix
        Begins every name in the header, in upper case where it is a macro's, so that headers of several specs go into
        one translation unit; made of the spec's name by default.

    Returns
    -------
    ASCII; same spec and prefix, same text. `<prefix>_hash` takes a run of ids and a state that holds the ids before
    it. With `ENGRAM_SELF_TEST` defined, `<prefix>_self_test` compares the golden cases; with `ENGRAM_SELF_TEST_MAIN`
    defined, the header is a program that does.

    Raises
    ------
    InvalidInput
        A prefix that is no C identifier.

    Notes
    -----
    Every column is a statement of its own, with a constant modulus: compilers turn that remainder into multiplications,
    but do not unroll a loop over columns at -O2 (GCC 12, 48 columns a token: 104 ns against 234, 2026-11-22).
    """
    stem = _prefix_of(spec.name) if prefix is None else prefix
    # Two underscores in a row, or one at the start, are reserved in C++.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", stem) or len(stem) > _MAX_PREFIX_CHARACTERS:
        raise InvalidInput(
            f"prefix: found {stem!r}, expected letters, digits and single underscores between them, a letter first and "
            f"at most {_MAX_PREFIX_CHARACTERS} characters; name another one"
        )
    values = _numbers(spec) | {"p": stem, "P": stem.upper()}
    parts = [
        _opening(spec, values),
        _constants(spec, values),
        *_window(spec, values),
        *_helpers(spec, values),
        *(_layer(spec, values, layer_idx) for layer_idx in range(len(spec.layers))),
        _hash(spec, values),
        _self_test(spec, values),
        templates.CLOSING,
    ]
    return "\n".join(parts)


def _prefix_of(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower())
    stem = "_".join(words[1:] if words[:1] == ["engram"] else words)
    return f"engram_{stem or 'spec'}"[:_MAX_PREFIX_CHARACTERS].rstrip("_")


def _numbers(spec: AddressSpec) -> dict[str, object]:
    """What several templates name."""
    layer_keys = len(spec.orders) * spec.key_words
    return {
        "fingerprint": spec.fingerprint,
        "canonical_size": spec.canonical_size,
        "fill_id": spec.fill_id,
        "n_layers": len(spec.layers),
        "n_columns": spec.n_columns,
        "n_orders": len(spec.orders),
        "key_words": spec.key_words,
        "max_order": spec.max_order,
        "n_before": spec.max_order - 1,
        # C has no arrays of length 0.
        "n_state": max(1, spec.max_order - 1),
        "layer_keys": layer_keys,
        "token_rows": len(spec.layers) * spec.n_columns,
        "token_keys": len(spec.layers) * layer_keys,
    }


def _fill(template: str, values: Mapping[str, object], **more: object) -> str:
    return Template(template).substitute(values, **more)


def _opening(spec: AddressSpec, values: Mapping[str, object]) -> str:
    width = "an unstated number of" if spec.row_width is None else f"{spec.row_width:,}"
    kind = "canonical ids: map token ids through the vocabulary first" if spec.folded else "token ids as they are"
    facts = {
        "name": spec.name,
        "from": spec.provenance,
        "fingerprint": spec.fingerprint,
        "vocabulary": f"map SHA-256 {spec.vocab_sha256}" if spec.vocab_sha256 else "digest not stated",
        "ids": f"0 to {spec.canonical_size - 1:,}, {kind}",
        "hash": f"{spec.mix.family}, orders {_listed(spec.orders)}, heads {_listed(spec.heads)}",
        "tables": f"{len(spec.layers)}, one a layer, of {spec.n_rows:,} rows together, {width} values a row",
        "reads": f"{spec.n_columns} rows a token and layer",
    }
    if spec.slices:
        facts["slices"] = f"each row is shared by {len(spec.slices)} decoder layers, which read a part of it each"
    if spec.separate_heads:
        facts["tensors"] = "the release has one a head; row ids here run through all of them, head after head"
    lines = [line for label, fact in facts.items() for line in _comment_lines(f"{label:<12} {fact}", indent=13)]
    # With the fingerprint in it, the header of another spec under the same prefix is refused, not skipped in silence.
    guard = f"{values['P']}_{spec.fingerprint[:16].upper()}_H"
    return _fill(templates.OPENING, values, facts="\n".join(lines), guard=guard)


def _comment_lines(text: str, *, indent: int) -> list[str]:
    wrapped = textwrap.wrap(_comment_text(text), _LINE_CHARACTERS, subsequent_indent=" " * indent)
    return [f" *   {line}" for line in wrapped]


def _comment_text(text: str) -> str:
    """`text` as printable ASCII that neither ends a comment nor opens one, continues a line or spells a trigraph."""
    text = re.sub(r"[^ -~]|\\", "_", text)
    text = re.sub(r"\*(?=/)|/(?=\*)", lambda found: found[0] + " ", text)
    return re.sub(r"\?(?=\?)", "? ", text)


def _c_string(text: str) -> str:
    return '"' + re.sub(r'[^ -~]|[\\"?]', "_", text) + '"'


def _listed(numbers: Iterable[object]) -> str:
    return ", ".join(map(str, numbers))


def _wrapped(text: str, *, indent: int, hanging: int = 0) -> str:
    """`text` over as many lines as it needs, broken at spaces."""
    lines = textwrap.wrap(
        text,
        _LINE_CHARACTERS,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def _array(name: str, numbers: Sequence[int]) -> str:
    values = _wrapped(_listed(f"UINT64_C({number})" for number in numbers), indent=8)
    return f"    static const uint64_t {name}[{len(numbers)}] = {{\n{values}\n    }};"


def _constants(spec: AddressSpec, values: Mapping[str, object]) -> str:
    return _fill(
        templates.CONSTANTS,
        values,
        vocab_sha256=_c_string(spec.vocab_sha256 or ""),
        orders=_listed(spec.orders),
        heads=_listed(spec.heads),
        layer_ids=_listed(spec.layer_ids),
        layer_rows=_listed(f"INT64_C({layer.n_rows})" for layer in spec.layers),
    )


def _window(spec: AddressSpec, values: Mapping[str, object]) -> list[str]:
    """The state and what a token sees of the ids before it: the history rule."""
    history = spec.history
    parts = [
        _fill(templates.STATE, values, purpose=templates.STATE_USED if spec.max_order > 1 else templates.STATE_UNUSED)
    ]
    hashed_id, boundary_rule = "(uint64_t)id", ""
    if history.replaced:
        hashed_id = f"{values['p']}_hashed_id((uint64_t)id)"
        ranges = {
            "starts": _array("start", [start for start, _ in history.replaced]),
            "stops": _array("stop", [stop for _, stop in history.replaced]),
            "n_ranges": len(history.replaced),
            "replacement": history.replacement,
        }
        parts.append(_fill(templates.REPLACE, values, **ranges))
    if history.boundary_ids:
        ids = history.boundary_ids
        parts.append(_fill(templates.BOUNDARY, values, boundaries=_array("boundary", ids), n_boundaries=len(ids)))
        closed = "            n_seen = 1;\n" if history.boundary_closed else ""
        boundary_rule = _fill(templates.AT_BOUNDARY, values, closed=closed, visible=int(history.boundary_visible))
    return [*parts, _fill(templates.SEE, values, hashed_id=hashed_id, boundary_rule=boundary_rule)]


def _helpers(spec: AddressSpec, values: Mapping[str, object]) -> list[str]:
    """Functions that some families need."""
    parts = []
    if spec.mix.word_bits == 32:
        parts.append(_fill(templates.SIGNED_REMAINDER, values))
    if spec.key_form is KeyForm.IDS:
        words = "\n".join(_packed_words(spec))
        parts.append(_fill(templates.PACK, values, words=words, id_bits=spec.id_bits))
    return parts


def _packed_words(spec: AddressSpec) -> list[str]:
    """Statements that write the ids of each order, newest in the lowest bits."""
    statements = []
    for order_idx, order in enumerate(spec.orders):
        words: list[list[str]] = [[] for _ in range(spec.key_words)]
        for back in range(order):
            word, shift = divmod(back * spec.id_bits, _WORD_BITS)
            words[word].append(f"(seen[{back}] << {shift})" if shift else f"seen[{back}]")
            if shift + spec.id_bits > _WORD_BITS:
                words[word + 1].append(f"(seen[{back}] >> {_WORD_BITS - shift})")
        for word, terms in enumerate(words):
            place = order_idx * spec.key_words + word
            statements.append(_wrapped(f"keys[{place}] = {' | '.join(terms) or '0'};", indent=4, hanging=4))
    return statements


def _layer(spec: AddressSpec, values: Mapping[str, object], layer_idx: int) -> str:
    """The function of one layer: a statement for each column and each key."""
    layer, n_keys = spec.layers[layer_idx], len(spec.orders) * spec.key_words
    first_row, first_key = layer_idx * spec.n_columns, layer_idx * n_keys
    factors = _factors(spec, layer)
    constants = [_array("factor", factors)] if factors else []
    constants += [_array("modulus", list(chain.from_iterable(layer.moduli))), _array("offset", layer.offsets)]
    if spec.key_form is KeyForm.MIX:
        constants += [
            _wrapped(f"const uint64_t mix_{order} = {_mix(spec, order)};", indent=4, hanging=4) for order in spec.orders
        ]
        numbers = [f"mix_{order}" for order, _ in spec.columns]
        keys = [f"        keys[{first_key + place}] = mix_{order};" for place, order in enumerate(spec.orders)]
    else:
        numbers = _sums(spec)
        keys = [f"        {values['p']}_pack(seen, keys + {first_key});"]
    remainder = f"{values['p']}_remainder({{}}, modulus[{{}}])" if spec.mix.word_bits == 32 else "{} % modulus[{}]"
    rows = [
        _wrapped(
            f"rows[{first_row + column}] = (int64_t)({remainder.format(number, column)} + offset[{column}]);",
            indent=8,
            hanging=4,
        )
        for column, number in enumerate(numbers)
    ]
    return _fill(
        templates.LAYER,
        values,
        layer_id=layer.layer_id,
        constants="\n".join(constants),
        rows="\n".join(rows),
        keys="\n".join(keys),
    )


def _factors(spec: AddressSpec, layer: LayerAddressing) -> list[int]:
    """What ids are multiplied by; the newest id of a polynomial stands by itself."""
    if spec.mix.family is not Family.POLYNOMIAL:
        return list(layer.multipliers)
    columns = zip(spec.columns, chain.from_iterable(layer.moduli), strict=True)
    # Powers are reduced by the column's modulus, so that the sum stays below 2^63, as `spec_checks.py` makes sure.
    return [pow(layer.multipliers[0], back, modulus) for (order, _), modulus in columns for back in range(1, order)]


def _mix(spec: AddressSpec, order: int) -> str:
    """The number that the heads of an order share, as a C expression."""
    if spec.mix.family is Family.IDENTITY:
        return "seen[0]"
    factors = range(order)[:: -1 if spec.mix.oldest_first else 1]
    terms = (f"(seen[{spec.lag(order) + back}] * factor[{factor}])" for back, factor in enumerate(factors))
    mix = " ^ ".join(terms)
    return f"({mix}) & UINT64_C(0xffffffff)" if spec.mix.word_bits == 32 else mix


def _sums(spec: AddressSpec) -> list[str]:
    """The number of each column, as a C expression."""
    sums, factor = [], 0
    for order, _ in spec.columns:
        terms = ["seen[0]"] if spec.mix.family is Family.POLYNOMIAL else []
        for back in range(len(terms), order):
            terms.append(f"seen[{back}] * factor[{factor}]")
            factor += 1
        sums.append(f"({' + '.join(terms)})")
    return sums


def _hash(spec: AddressSpec, values: Mapping[str, object]) -> str:
    calls = (f"            {values['p']}_layer_{layer_id}(seen, rows, keys);" for layer_id in spec.layer_ids)
    return _fill(templates.HASH, values, calls="\n".join(calls))


def _self_test(spec: AddressSpec, values: Mapping[str, object]) -> str:
    cases = golden_cases(spec)
    ids = [token for case in cases for token in (*case.history, *case.ids)]
    rows = [row for case in cases for row in chain.from_iterable(chain.from_iterable(case.rows))]
    exact = [key for case in cases for key in chain.from_iterable(chain.from_iterable(case.keys))]
    keys = [key >> _WORD_BITS * word & 2**_WORD_BITS - 1 for key in exact for word in range(spec.key_words)]
    summaries = (f"    {{{_c_string(case.name)}, {len(case.history)}, {len(case.ids)}}}" for case in cases)
    return _fill(
        templates.SELF_TEST,
        values,
        n_cases=len(cases),
        cases=",\n".join(summaries),
        n_golden_ids=len(ids),
        ids=_wrapped(_listed(ids), indent=4),
        n_golden_rows=len(rows),
        rows=_wrapped(_listed(rows), indent=4),
        n_golden_keys=len(keys),
        keys=_wrapped(_listed(map(hex, keys)), indent=4),
        largest_chunk=_LARGEST_CHUNK,
    )
