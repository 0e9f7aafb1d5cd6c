#!/usr/bin/env bash
# Build the wheel, install it with [zoo] into an empty environment, and use it from an empty folder.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT

"${PYTHON:-python3}" -m build --wheel --outdir "$room/dist" "$project" >"$room/build.log" 2>&1 ||
    { cat "$room/build.log"; exit 1; }
"${PYTHON:-python3}" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check -c "$project/constraints.txt" \
    "$(echo "$room"/dist/*.whl)[zoo]"

mkdir "$room/empty" && cd "$room/empty"
"$room/venv/bin/python" -c "import gymnasium; gymnasium.make('sb3_ppo_variants:RoboschoolHumanoid-v1').reset(seed=0)"
"$room/venv/bin/ppo-variants" list
"$room/venv/bin/ppo-variants" train --algo ppo_clip_paper --env CartPole-v1 -n 20000 --no-progress
"$room/venv/bin/ppo-variants" plot --algo ppo_clip_paper --env CartPole-v1
"$room/venv/bin/ppo-variants" record --algo ppo_clip_paper --env CartPole-v1 -n 50
"$room/venv/bin/ppo-variants" package --run logs/ppo_clip_paper/CartPole-v1_1 --episodes 2
"$room/venv/bin/ppo-variants" enjoy --env CartPole-v1 --shipped trained_agents -n 50
shipped=$("$room/venv/bin/python" -c "from sb3_ppo_variants.agents.folder import shipped_agents; print(shipped_agents())")
test -f "$shipped/README.md" || { echo "trained_agents is not in the wheel"; exit 1; }
for agent in "$shipped"/*/agent.json; do
    "$room/venv/bin/ppo-variants" enjoy --env "$(basename "$(dirname "$agent")")" --shipped -n 50
done
find . -name 'CartPole-v1.zip' | grep -q . || { echo "no model was saved"; exit 1; }
echo "wheel: ok"
