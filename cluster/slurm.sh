#!/usr/bin/env bash
# Trains on several nodes of a Slurm cluster; what follows goes to raysrec.train:
#
#   sbatch cluster/slurm.sh --config configs/netflix.yaml storage.root=/shared/runs data.prepared=/shared/prepared
#   sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh …       # options of sbatch lie over those below
#   RAYSREC_VERB=prepare sbatch --gpus-per-node=0 cluster/slurm.sh …
#
# Before the time limit Slurm sends SIGTERM: the run saves and ends, the job is queued again and goes on from there.
# Submit from the project's folder, with .venv in it (tools/quickstart makes it), on a file system that all nodes share.
#SBATCH --job-name=raysrec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?this is for sbatch}"
export PATH="$PWD/.venv/bin:$PATH"
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"

# Others on the network reach these ports: nobody works here without the token in your home.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null
folder=/tmp/ray-$SLURM_JOB_ID
port=6379

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# What the head's name stands for, or else what its network cards have: under Debian the name is 127.0.1.1, which no other
# node reaches.
on_head=(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}")
head_ip=$({ "${on_head[@]}" hostname --ip-address && "${on_head[@]}" hostname --all-ip-addresses; } |
  tr ' ' '\n' | grep -F . | grep -m1 -v '^127\.') || {
  echo "error: ${nodes[0]} has no IPv4 address that other nodes reach, only $(hostname --all-ip-addresses)" >&2
  exit 1
}
export RAY_ADDRESS=$head_ip:$port

# `ray start` knows the CPUs of a machine, and not how many of them Slurm gave.
start=(ray start --block --disable-usage-stats --temp-dir "$folder")
here=(--num-cpus "${SLURM_CPUS_PER_TASK:?set --cpus-per-task}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}")
on=(srun --ntasks-per-node=1 --kill-on-bad-exit=0)

# shellcheck disable=SC2329 # the trap calls it
end() {
  kill "${ray_nodes[@]}" 2>/dev/null || true
  wait "${ray_nodes[@]}" 2>/dev/null || true
  srun --nodes="${#nodes[@]}" --ntasks-per-node=1 rm -rf "$folder" || true
}
ray_nodes=()
trap end EXIT

"${on[@]}" --nodes=1 --nodelist="${nodes[0]}" \
  "${start[@]}" --head --node-ip-address "$head_ip" --port "$port" --dashboard-host 127.0.0.1 "${here[@]}" &
ray_nodes+=($!)
for ((waited_s = 0; ; waited_s++)); do
  if ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; then
    break
  elif [ "$waited_s" -ge 120 ]; then
    echo "error: Ray did not start on ${nodes[0]} within two minutes; its logs are in $folder there" >&2
    exit 1
  fi
  sleep 1
done
if [ "${#nodes[@]}" -gt 1 ]; then
  "${on[@]}" --nodes=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" \
    "${start[@]}" --address "$RAY_ADDRESS" "${here[@]}" &
  ray_nodes+=($!)
fi

# The other nodes may still be starting; the run waits for them (scale.wait_s).
python -m "raysrec.${RAYSREC_VERB:-train}" "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
status=0
wait "$run" || status=$?
while kill -0 "$run" 2>/dev/null; do # the signal ended the waiting, and the run is saving
  status=0
  wait "$run" || status=$?
done
if [ "$status" -eq 143 ]; then
  echo "saved; the job goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
