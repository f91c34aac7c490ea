#!/bin/sh
# Trains every comparison of docs/benchmarks.md, one run after another: PBT against its baselines, the ablations of the
# PBT paper, and the models that are not RL. A sweep that is finished is skipped and an interrupted one continues, so the
# script can be stopped and started at any time. All of it takes days on two cores.
#
#   benchmarks/evidence.sh [GROUP ...]      groups: classifier boosting baselines ablations gan translator
set -u
PBTRL=${PBTRL:-.venv/bin/pbtrl}
OUT=${OUT:-evidence}

# sweep NAME SEEDS CONFIG ARGUMENT...
sweep() {
  name=$1 seeds=$2
  shift 2
  "$PBTRL" sweep "$@" --seeds "$seeds" --name "$name" --runs "$OUT" --progress plain || exit_if_stopped $?
  "$PBTRL" compare "$OUT/$name"
}

exit_if_stopped() { [ "$1" -ge 128 ] && exit "$1"; }

against_random='strategy.name=pbt,random_search'

baselines() {
  sweep acrobot 5 cartpole env.id=Acrobot-v1 population.size=8 --set "$against_random"
  sweep halfcheetah 5 quickstart --set "$against_random"
  sweep hopper 5 hopper --set "$against_random"
  sweep walker2d 5 hopper env.id=Walker2d-v5 --set "$against_random"
}

ablations() {
  sweep ablation-copy 3 quickstart --set 'strategy.copy=[weights],[hparams],[weights, hparams]'
  sweep ablation-size 3 quickstart budget.total_steps=3_840_000 budget.env_steps_per_member=null \
    --set population.size=2,4,8,16
  sweep ablation-interval 3 quickstart --set strategy.ready.slice_steps=12_000,48_000,192_000
  sweep ablation-exploit 3 quickstart --set strategy.exploit.method=truncation,binary_tournament,t_test
}

classifier() {
  sweep classifier 5 classifier population.size=12 --set 'strategy.name=pbt,random_search,fire'
}

gan() {
  sweep gan 5 gan --set "$against_random"
}

translator() {
  sweep translator 5 translator --set "$against_random"
}

boosting() {
  for task in breast_cancer digits wine iris diabetes \
    generated-00 generated-01 generated-02 generated-03 generated-04 generated-05 generated-06 generated-07 \
    generated-08 generated-09 generated-10 generated-11 generated-12 generated-13 generated-14; do
    sweep "boosting-$task" 3 boosting "trainable.task=$task" budget.total_steps=3000 --set "strategy=\
{name: random_search, trials: 60},\
{name: bayesian, trials: 60},\
{name: asha, trials: 355},\
{name: rl_search, trials: 60, batch_size: 10},\
{name: rl_search, trials: 60, batch_size: 10, model: {method: none}}"
  done
  .venv/bin/python benchmarks/ranks.py "$OUT"/boosting-*
}

for group in "${@:-classifier}"; do
  "$group"
done
