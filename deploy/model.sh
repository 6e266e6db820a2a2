#!/bin/sh
# A model from a made-up world, for who has none yet: model.sh MODEL KEYS
# MODEL gets bundle and key.pub, KEYS the private key. Where MODEL has a key.pub, nothing is done.
set -eu
model=$1
keys=$2
if [ -e "$model/key.pub" ]; then
    echo "there is a model in $model"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python -m loadgen world --days 30 --customers 500 --rate 700 --fraud-rate 0.01 --out world.parquet
python -m featurizer backfill world.parquet vectors.parquet --strict
python -m trainer train vectors.parquet --out "$model/bundle" --key "$keys/key" --iterations 100 --replace
# Last, and whole: it tells that the rest is there.
cp "$keys/key.pub" "$model/key.pub.new"
mv "$model/key.pub.new" "$model/key.pub"
