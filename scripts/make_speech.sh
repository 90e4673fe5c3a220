#!/usr/bin/env bash
# Has espeak-ng speak 405 sentences in 8 voices, about 24 minutes: bash scripts/make_speech.sh speech
# Then: python train.py experiment=speech_small data.root=speech. The package is in most distributions: apt-get install espeak-ng
set -euo pipefail
folder=${1:?"name the folder to write to"}
command -v espeak-ng > /dev/null || { echo "espeak-ng is not installed: apt-get install espeak-ng" >&2; exit 2; }

subjects=("The old captain" "A small bird" "My neighbor" "The weather report" "Every student" "A quiet machine"
  "The second train" "Her younger brother" "The committee" "Nobody in town" "The garden" "This recipe" "An honest answer"
  "The museum guide" "Our teacher")
verbs=("never mentioned" "carefully described" "quickly found" "will remember" "has forgotten" "often talks about"
  "was looking for" "could not explain" "brought back")
objects=("the blue lantern by the harbor." "seven letters from the north." "a strange noise in the kitchen."
  "the shortest way to the river." "what happened on Thursday." "fifty pages of careful notes."
  "the price of fresh oranges." "an empty house with green windows.")
voices=(en-us en-gb en-us+f2 en-us+m3 en-gb+f4 en-gb-scotland en-us+m7 en-gb-x-rp+f3)

number=0
for subject in "${subjects[@]}"; do
  for verb in "${verbs[@]}"; do
    for other in 0 3 6; do
      object=${objects[$(((number / 3 + other) % 8))]}
      voice=${voices[$(((number * 5 + number / 8) % 8))]} # a voice is a class: a folder of its own
      mkdir -p "$folder/$voice"
      espeak-ng -v "$voice" -s $((140 + number * 7 % 50)) -p $((30 + number * 11 % 40)) \
        -w "$folder/$voice/$number.wav" "$subject $verb $object"
      number=$((number + 1))
    done
  done
done
echo "$number sentences in $folder"
