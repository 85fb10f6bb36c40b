#!/bin/sh
# The main job on real input: DeepSeek's V4 tokenizer and the Python standard library's sources.
# Usage: sh demo.sh [OUTPUT_DIRECTORY]     (`make demo` sets up what it needs and runs it)
set -eu
out=${1:-demo-output}
sources=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$out"

step() {
    printf '\n==> engram'
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./,=:@%+-]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    engram "$@"
}

step build-vocab deepseek-v4 -o "$out/v4.vocab.parquet" --force --groups 5 --expect-size 99092 \
    --expect-sha256 c60a86322ec17b4142bfef3c57a8d81fb428550cdf487f88a4320cb59fe46481
step tokenize "$sources" --glob '*.py' --exclude '*-packages' --exclude email --decode-errors replace \
    --vocab "$out/v4.vocab.parquet" -o "$out/tokens" --force
step count "$out/tokens" --vocab "$out/v4.vocab.parquet" --orders 2,3,4 --next raw -o "$out/counts" --top 3 --force
step counts get "$out/counts" 'import numpy as' 'of the' --vocab "$out/v4.vocab.parquet"
step spec make --vocab "$out/v4.vocab.parquet" --orders 2,3,4 --heads 8 --rows-per-head 80000 --layers 1,14 \
    --row-width 256 --name demo -o "$out/spec.json" --force
step trace "$out/tokens" --spec "$out/spec.json" --vocab "$out/v4.vocab.parquet" --store none >"$out/traffic.txt"
sed -n '1,14p' "$out/traffic.txt"
step build-table --spec "$out/spec.json" --vocab "$out/v4.vocab.parquet" --init normal --codec fp8-e4m3-e8m0 \
    --layout page -o "$out/table" --force
step verify "$out/table"
step inspect ngram "$out/table" 'import numpy as' --counts "$out/counts" --last --orders 3
step spec make --vocab "$out/v4.vocab.parquet" --orders 2,3 --heads 8 --rows-per-head 300000 --layers 1 \
    --row-width 64 --name knowing -o "$out/knowing.json" --force
step build-table --spec "$out/knowing.json" --vocab "$out/v4.vocab.parquet" --from-counts "$out/counts" \
    --init next-token --codec fp8-e4m3-e8m0 -o "$out/knowing" --force
step inspect ngram "$out/knowing" 'from __future__ import' --counts "$out/counts" --last --orders 3
step evaluate "$out/knowing" "$sources/email" --glob '*.py' --counts "$out/counts" --sample 2000
step bench-offload "$out/table" --corpus "$sources" --glob '*.py' --exclude '*-packages' --tokens 1,512 \
    --seconds 0.2 --record "$out/bench.json" --force
step simulate "$out/tokens" --preset deepseek-v4.1-flash --vocab "$out/v4.vocab.parquet" --sizes 512MiB,2GiB,8GiB \
    --policy lru,belady --memory 256MiB --record "$out/hits.json" --force
step plan --preset deepseek-v4.1-flash --machine "$out/bench.json" --tokens-per-s 20 --hit-curve "$out/hits.json" \
    --cache 8GiB --disk 1TB --placement nvme-packed
step doctor "$out/table"
step export "$out/table" --to deepseek -o "$out/checkpoint" --force
step inspect header "$out/checkpoint" --spec "$out/spec.json" --row 1:1000000
step build-table --from "$out/checkpoint" --spec "$out/spec.json" --layout packed -o "$out/imported" --force
step verify "$out/imported" --against "$out/checkpoint"
step diff "$out/table" "$out/imported"

cat <<END

What was made, all below $out:
  v4.vocab.parquet  129,280 token ids folded to 99,092 canonical ids, with the tokenizer inside
  tokens/           the sources as token ids, which the commands after it read
  counts/           every 2-, 3- and 4-gram of the sources and the token after it, with its exact count, as sorted Parquet
  spec.json         the addressing: orders 2 to 4, 8 heads each, layers 1 and 14
  traffic.txt       what the sources read of these rows, head by head
  table/            the table: $(du -sh "$out/table" | cut -f1) of rows in safetensors shards, checked against its manifest
  knowing/          a table whose rows say which token follows an n-gram, made of the counts
  bench.json        the record of the benchmark, raw samples and environment included
  hits.json         hit ratios of caches of the real model's rows on these sources
  checkpoint/       the table's rows as a checkpoint in DeepSeek's form, weights and scales apart
  imported/         a table made from that checkpoint, equal to it bit for bit

Where to look next:
  engram inspect ngram $out/knowing 'for i in range' --counts $out/counts
  engram inspect stats $out/knowing --counts $out/counts
  engram counts stats $out/counts --plot $out/zipf.html
  engram inspect vocab $out/v4.vocab.parquet --text 'The THE the'
  engram hash --preset deepseek-v4.1-flash --vocab $out/v4.vocab.parquet --text 'the rows of the real model'
  engram spec list
END
