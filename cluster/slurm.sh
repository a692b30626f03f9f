#!/usr/bin/env bash
# A run on nodes of Slurm: Ray's head on the first, one Ray node on each, with a token and TLS; the run's own exit code.
#   sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh task=mmlu_pro pool=paper16 output_dir=/shared/runs --run night
# Submit from the root of the source tree, on storage that all nodes see. At the time limit the run gets SIGTERM 180 s ahead,
# writes what it has, ends with 143 and is queued again, where it goes on. Settings by environment:
#   SYMOE_BIN          the folder of `symoe`, `ray` and `python` on the nodes (default: what PATH finds)
#   SYMOE_CACHE        a folder on the nodes' own disks, for copies of models (default: ~/.cache/symoe-ray)
#   SYMOE_RAY_OPTIONS  further options of `ray start`
#SBATCH --job-name=symoe
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=symoe-%j.log
set -euo pipefail

[ -z "${SYMOE_BIN:-}" ] || export PATH="$SYMOE_BIN:$PATH"
tls=$SLURM_SUBMIT_DIR/cluster/tls.sh # this script itself runs from a copy elsewhere
secrets=$SLURM_SUBMIT_DIR/.symoe-$SLURM_JOB_ID
port=$((20000 + SLURM_JOB_ID % 10000))
read -ra options <<<"${SYMOE_RAY_OPTIONS:-}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

ray_nodes=()
# shellcheck disable=SC2329 # the trap calls it
finish() {
    trap '' TERM
    kill -TERM "${ray_nodes[@]}" 2>/dev/null || true
    for _ in {1..20}; do
        kill -0 "${ray_nodes[@]}" 2>/dev/null || break
        sleep 1
    done
    kill -KILL "${ray_nodes[@]}" 2>/dev/null || true
    rm -rf "$secrets"
}
trap finish EXIT

step=(srun --overlap --nodes=1 --ntasks=1) # --overlap: the run shares the first node

# A token and a certificate for the addresses of all nodes, which only this user can read.
addresses=()
for node in "${nodes[@]}"; do
    addresses+=("$("${step[@]}" --nodelist="$node" hostname -I | cut -d' ' -f1)")
done
umask 077
mkdir -p "$secrets"
openssl rand -hex 32 >"$secrets/auth_token"
"$tls" ca "$secrets"
"$tls" node "$secrets" "${addresses[@]}"
rm "$secrets/ca.key"
eval "$("$tls" env "$secrets")"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$secrets/auth_token" RAY_USAGE_STATS_ENABLED=0
export RAY_ADDRESS=${addresses[0]}:$port

"${step[@]}" --nodelist="${nodes[0]}" env -u RAY_ADDRESS ray start --head --block --port="$port" --node-ip-address="${addresses[0]}" \
    --include-dashboard=false "${options[@]}" &
ray_nodes+=($!)
for i in "${!nodes[@]}"; do
    [ "$i" -gt 0 ] || continue
    "${step[@]}" --nodelist="${nodes[i]}" ray start --block --address="$RAY_ADDRESS" --node-ip-address="${addresses[i]}" \
        "${options[@]}" &
    ray_nodes+=($!)
done
python "$SLURM_SUBMIT_DIR/cluster/await_nodes.py" "${#nodes[@]}"

# Slurm's SIGTERM comes to this shell, which passes it on to the run and then waits for the run's own end.
symoe run cluster=auto "$@" &
run=$!
told=''
trap 'told=1; kill -TERM "$run" 2>/dev/null || true' TERM
while :; do
    told='' code=0
    wait "$run" || code=$?
    [ -n "$told" ] || break
done
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
