#!/bin/sh
# Trains comparisons of docs/benchmarks.md, one run after another: PBT against its baselines, FIRE against PBT, the
# ablations of the PBT paper, and the models that are not RL. A sweep that is finished is skipped and an interrupted one
# continues, so the script can be stopped and started at any time. All of it takes more than a day on two cores. Results go
# to benchmarks/results.jsonl and docs/results.md.
#
#   benchmarks/evidence.sh [GROUP ...]      groups, by default all: million million_others atari strategies classifier
#                                           boosting baselines ablations gan translator
set -u
PYTHON=${PYTHON:-.venv/bin/python}
PBTRL=${PBTRL:-.venv/bin/pbtrl}
OUT=${OUT:-evidence}

# sweep NAME SEEDS CONFIG ARGUMENT...
sweep() {
  name=$1 seeds=$2
  shift 2
  "$PBTRL" sweep "$@" --seeds "$seeds" --name "$name" --runs "$OUT" --progress plain || exit_if_stopped $?
  "$PBTRL" compare "$OUT/$name"
  "$PYTHON" benchmarks/results.py "$OUT/$name"
}

exit_if_stopped() { [ "$1" -ge 128 ] && exit "$1"; }

against_random='strategy.name=pbt,random_search'

# FIRE's evaluators count: every strategy trains 10 members for as many env steps in all. A curve point is a HalfCheetah
# episode of each env, and an evaluation has up to twelve points.
strategies() {
  rl_strategies fire-impala-halfcheetah 2_400_000 impala
  rl_strategies fire-vmpo-halfcheetah 2_400_000 vmpo
  rl_strategies fire-vmpo-ant 1_200_000 vmpo env.id=Ant-v5
}

# rl_strategies NAME STEPS CONFIG ARGUMENT...
rl_strategies() {
  name=$1 steps=$2
  shift 2
  ready='ready: {slice_steps: 24_000, burn_in: 48_000}'
  rules='exploit: {bottom: 0.25, top: 0.25}, explore: {factors: [2, 0.5]}'
  sweep "$name" 3 "$@" population.size=10 "budget.total_steps=$steps" \
    budget.env_steps_per_member=null fitness.curve_interval=8_000 --set "strategy=\
{name: pbt, $ready, $rules},\
{name: random_search, $ready},\
{name: fire, subpopulations: [4, 4], max_eval_steps: 96_000, $ready, $rules}"
}

baselines() {
  sweep acrobot 5 cartpole env.id=Acrobot-v1 population.size=8 --set "$against_random"
  sweep quickstart 5 quickstart --set "$against_random"
  million_of hopper 5 hopper --set "$against_random"
  million_of walker2d 5 walker2d --set "$against_random"
}

# One million env steps per member: PPO by PBT and by random search, with the settings of the env's own config.
million() {
  million_of halfcheetah 3 quickstart --set "$against_random"
  million_of hopper 3 hopper --set "$against_random"
  million_of walker2d 3 walker2d --set "$against_random"
  million_of ant 3 ant --set "$against_random"
  million_of humanoid 3 humanoid --set "$against_random"
}

# The same by the other agents, with their settings for HalfCheetah; V-MPO has others for Hopper and Ant.
million_others() {
  million_of hopper-impala 3 impala env.id=Hopper-v5
  million_of hopper-vmpo 3 vmpo-hopper
  million_of ant-impala 3 impala env.id=Ant-v5
  million_of ant-vmpo 3 vmpo-ant
  for agent in impala vmpo; do
    million_of "halfcheetah-$agent" 3 "$agent"
    million_of "walker2d-$agent" 3 "$agent" env.id=Walker2d-v5
    million_of "humanoid-$agent" 3 "$agent" env.id=Humanoid-v5
  done
  million_of halfcheetah-a3c 3 a3c
  million_of hopper-a3c 3 a3c env.id=Hopper-v5
}

# million_of NAME SEEDS CONFIG ARGUMENT...
million_of() {
  name=$1 seeds=$2
  shift 2
  sweep "million-$name" "$seeds" "$@" budget.env_steps_per_member=1_000_000
}

# Pong until a fitness, Breakout for an hour, and others for 2M env steps (8M frames) per member.
atari() {
  sweep pong 1 pong
  sweep breakout 1 breakout
  for game in Boxing Freeway SpaceInvaders; do
    sweep "atari-$game" 1 breakout "env.id=ALE/$game-v5" \
      budget.env_steps_per_member=2_000_000 budget.until_fitness=null budget.wall_clock=null
  done
  sweep mixed-breakout 1 mixed-breakout --set strategy.exploit.across_agents=false,true
}

# What differs from the quickstart, whose PBT is the first arm: what is copied, how often, and by which rule.
ablations() {
  ready='slice_steps: 48_000, burn_in: 96_000'
  truncation='exploit: {method: truncation, bottom: 0.25, top: 0.25}'
  explore='explore: {method: perturb, factors: [1.5, 0.67]}'
  sweep ablation 3 quickstart --set "strategy=\
{name: pbt, ready: {$ready}, $truncation, $explore},\
{name: pbt, ready: {$ready}, $truncation, $explore, copy: [weights]},\
{name: pbt, ready: {$ready}, $truncation, $explore, copy: [hparams]},\
{name: pbt, ready: {slice_steps: 12_000, burn_in: 96_000}, $truncation, $explore},\
{name: pbt, ready: {slice_steps: 192_000, burn_in: 96_000}, $truncation, $explore},\
{name: pbt, ready: {$ready}, exploit: {method: binary_tournament}, $explore},\
{name: pbt, ready: {$ready}, exploit: {method: t_test}, $explore}"
  sweep ablation-size 3 quickstart budget.total_steps=3_840_000 budget.env_steps_per_member=null \
    --set population.size=2,4,8,16
}

# The constants of `fixed` were picked by hand, from the table in docs/trainables.md.
classifier() {
  ready='ready: {slice_steps: 200}'
  sweep classifier 5 classifier population.size=12 --set "strategy=\
{name: pbt, $ready},{name: random_search, $ready},{name: fire, $ready},\
{name: fixed, trials: 12, values: {learning_rate: 0.03, momentum: 0.9, label_smoothing: 0.0, shift: 0}}"
}

gan() {
  ready='ready: {slice_steps: 500}'
  sweep gan 5 gan --set "strategy=\
{name: pbt, $ready, explore: {factors: [2.0, 0.5]}},{name: random_search, $ready},\
{name: fixed, trials: 8, values: {generator_lr: 1e-3, discriminator_lr: 1e-3}}"
}

translator() {
  ready='ready: {slice_steps: 75, burn_in: 150}'
  sweep translator 5 translator --set "strategy=\
{name: pbt, $ready, exploit: {method: binary_tournament}, explore: {method: perturb, factors: [1.2, 0.8]}},\
{name: random_search, $ready},\
{name: fixed, trials: 8, values: {learning_rate: 0.01, attention_dropout: 0.1, residual_dropout: 0.1, relu_dropout: 0.1,\
 label_smoothing: 0.0}}"
}

# A trial is one cross-validation; ASHA has one per rung.
boosting() {
  sweep cnn_search 3 cnn_search
  ready='ready: {slice_steps: 50}'
  for task in breast_cancer digits wine iris diabetes \
    generated-00 generated-01 generated-02 generated-03 generated-04 generated-05 generated-06 generated-07 \
    generated-08 generated-09 generated-10 generated-11 generated-12 generated-13 generated-14; do
    sweep "boosting-$task" 3 boosting "trainable.task=$task" budget.total_steps=3000 --set "strategy=\
{name: random_search, trials: 60, $ready},\
{name: bayesian, trials: 60, $ready},\
{name: asha, trials: 355, $ready},\
{name: rl_search, trials: 60, batch_size: 10, $ready},\
{name: rl_search, trials: 60, batch_size: 10, $ready, model: {method: none}}"
  done
  "$PYTHON" benchmarks/ranks.py "$OUT"/boosting-*
}

[ $# -gt 0 ] ||
  set -- million million_others atari strategies classifier boosting baselines ablations gan translator
for group in "$@"; do
  "$group"
done
