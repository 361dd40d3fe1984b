#!/usr/bin/env bash
# Install a wheel into an empty virtual environment and go from text to a model there: smoke.sh PYTHON WHEEL
# What the base install lacks is asked for by name, and the package's types are found.
set -euo pipefail
python=$(realpath -s "$1") wheel=$(realpath "$2") root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
"$python" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$wheel"
venv/bin/python -m pip check
bertconv=venv/bin/bertconv
$bertconv --version
$bertconv doctor
for line in {1..200}; do echo "the cat number $line sat on the mat $((line * 7))"; done > text.txt
$bertconv train-tokenizer --input text.txt --output_dir tokenizer --vocab_size 40
$bertconv build-dataset --train_data_file text.txt --tokenizer_name tokenizer --output_dir pairs
$bertconv pretrain --train_data_file pairs --tokenizer_name tokenizer --config_name bert_small \
    --attention_kernel "qk_convfixed_convq_convk 4" --num_hidden_layers 1 --do_train --do_eval --eval_fraction 0.1 \
    --block_size 32 --max_steps 2 --output_dir model
venv/bin/python - <<'PYTHON'
import importlib.util
import bert_convolutions
from transformers import AutoModelForMaskedLM, AutoTokenizer

model, tokenizer = AutoModelForMaskedLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
assert model(**tokenizer("the cat", return_tensors="pt")).logits.isfinite().all()
assert not importlib.util.find_spec("matplotlib"), "the base install is to be lean"
PYTHON
for words in "demo" "plot-kernels model" "export --input model --output_dir onnx --format onnx"; do
    if message=$($bertconv $words 2>&1); then echo "bertconv $words should have asked for an extra" >&2; exit 1; fi
    grep --quiet "pip install 'bert-convolutions\[" <<< "$message" || { echo "$message" >&2; exit 1; }
done
echo "The wheel works in an empty environment."
