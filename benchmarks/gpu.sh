#!/usr/bin/env bash
# One command on a machine with an NVIDIA GPU: llm_local and llama-server, the same synthetic Qwen2.5-7B in Q5_K_M,
# interleaved, at 1, 4, 16 and 64 clients. No figures of it exist yet: it was written where no GPU could be had.
#
#   benchmarks/gpu.sh VOCABULARY.gguf LLAMA_SERVER [FOLDER]
#
#   VOCABULARY.gguf  any Qwen2.5 GGUF: its tokens and chat template are used, not its weights
#   LLAMA_SERVER     llama-server, built with CUDA from the sources that llama-cpp-python was built from
#   FOLDER           where the model (5.4 GB, kept), the logs and the report go [gpu-bench]
#
# Both servers are loaded at the same time, so that rounds can alternate: 2 x (5.4 GB + 1.8 GB of KV cells and what
# computing needs), 18 GB in all. On a smaller device lower SHAPE to qwen2.5-1.5b-q5_k_m, and say so with the figures.
# Random weights make random text: nothing that depends on what is said (guesses, schemas, ends) can be measured so.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,16s/^# \{0,1\}//p' "$0"
    exit 2
fi
vocabulary=$(realpath "$1") llama_server=$(realpath "$2") folder=$(realpath -m "${3:-gpu-bench}")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
shape=${SHAPE:-qwen2.5-7b-q5_k_m}
ctx=32768 parallel=64 batch=512

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv || { echo "no NVIDIA GPU here"; exit 1; }
"$python" -c 'import llama_cpp, sys; sys.exit(not llama_cpp.llama_supports_gpu_offload())' || {
    echo "this llama-cpp-python has no GPU support: CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir llama-cpp-python==0.3.36"
    exit 1
}

mkdir -p "$folder"
model=$folder/$shape.gguf
[ -f "$model" ] || "$python" -m llm_local bench --synthetic "$shape" --vocabulary "$vocabulary" --out "$model"

pids=()
stop() { [ ${#pids[@]} -eq 0 ] || { kill "${pids[@]}" 2>/dev/null; wait; } || true; }
trap stop EXIT

wait_ready() { # URL PID LOG
    for _ in $(seq 300); do
        "$python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=2)' "$1/health" 2>/dev/null && return
        kill -0 "$2" 2>/dev/null || { echo "a server ended:"; tail -n 20 "$3"; exit 1; }
        sleep 1
    done
    echo "$1 was not ready within 5 minutes"
    exit 1
}

"$python" -m llm_local serve --model "$model" --port 18080 --host 127.0.0.1 --gpu-layers -1 --ctx $ctx \
    --parallel $parallel --batch-size $batch --ubatch-size $batch >"$folder/llm_local.log" 2>&1 &
pids+=($!)
wait_ready http://127.0.0.1:18080 "${pids[0]}" "$folder/llm_local.log"
"$llama_server" -m "$model" --port 18081 --host 127.0.0.1 -ngl 99 -c $ctx -np $parallel -b $batch -ub $batch \
    --kv-unified >"$folder/llama-server.log" 2>&1 &
pids+=($!)
wait_ready http://127.0.0.1:18081 "${pids[1]}" "$folder/llama-server.log"

"$python" -m llm_local bench "llm_local=http://127.0.0.1:18080@${pids[0]}" "llama-server=http://127.0.0.1:18081@${pids[1]}" \
    --clients 1,4,16,64 --rounds 8 --requests 4 --json "$folder/chat.json" --report "$folder/report"

# Sampling on the host and on the device, in place of llama-server.
kill "${pids[1]}"
wait "${pids[1]}" || true
"$python" -m llm_local serve --model "$model" --port 18082 --host 127.0.0.1 --gpu-layers -1 --ctx $ctx --parallel $parallel \
    --batch-size $batch --ubatch-size $batch --backend-sampling true >"$folder/backend-sampling.log" 2>&1 &
pids[1]=$!
wait_ready http://127.0.0.1:18082 "${pids[1]}" "$folder/backend-sampling.log"
"$python" -m llm_local bench "host=http://127.0.0.1:18080@${pids[0]}" "device=http://127.0.0.1:18082@${pids[1]}" \
    --clients 1,4,16,64 --rounds 8 --requests 4 --json "$folder/backend-sampling.json" --report "$folder/report-sampling"
nvidia-smi --query-compute-apps=pid,used_memory --format=csv | tee "$folder/memory.csv"
