"""A model behind a URL, named on the command line."""

from __future__ import annotations

import json

from range_server import RangeServer
from typer.testing import CliRunner

from engram_cli.app import app

CONFIG = {
    "engram_layer_ids": [1, 14], "engram_num_embeddings": [384_006_168, 384_016_682], "engram_max_ngram_size": 4,
    "engram_vocab_size": 16_000_000, "engram_n_heads": 8, "engram_head_dim": 256, "engram_pad_token_id": 2,
    "engram_compressed_vocab_size": 99_092,
}  # fmt: skip


def test_a_config_behind_a_url() -> None:
    with RangeServer(files={"/some-model/config.json": json.dumps(CONFIG).encode()}) as server:
        results = [
            CliRunner().invoke(app, ["spec", "show", *named, "--json"])
            for named in (["--model", f"{server.url}/some-model/config.json"], ["--preset", "deepseek-v4.1-flash"])
        ]
    assert [result.exit_code for result in results] == [0, 0], results[0].output
    found, expected = (json.loads(result.stdout) for result in results)
    assert found["fingerprint"] == expected["fingerprint"]
    assert found["name"] == "some-model"
