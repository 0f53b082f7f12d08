#!/usr/bin/env bash
# Classify a CSV file: compare methods on it, predict new texts with the best one, look at its report.
# Usage: bash examples/classify_csv.sh FOLDER [more options of `unipelt compare`]
set -euo pipefail
folder=$1
data=$(cd "$(dirname "$0")" && pwd)/tickets.csv

unipelt compare --data "$data" --text-column text --label-column area \
  --methods head lora --seeds 2 --num-rates 1 --max-length 32 --out "$folder/tickets" "${@:2}"

printf 'text\nThe invoice names the wrong company.\nThe window freezes when I scroll.\n' > "$folder/new.csv"
unipelt predict "$folder/tickets/winner" --data "$folder/new.csv" --proba
unipelt inspect "$folder/tickets/winner"
