"""Faults for the real port, each as a porter makes it: wrong code or wrong weights, planted in loaded models before a run.

`FAULTS` names them, in the order of the stages. Each says where it truly is, so that a demonstration, the tests and
`benchmarks/chatterbox_faults.py` can tell whether it was found. `planted` plants some for as long as a block of code runs.
"""

from __future__ import annotations

import chatterbox_faults_s3gen
import chatterbox_faults_t3
import chatterbox_faults_vocoder
import chatterbox_faults_voice
import chatterbox_mends
import chatterbox_plant
import chatterbox_shared

FAULTS = dict(sorted(chatterbox_plant.FAULTS.items(), key=lambda item: list(chatterbox_shared.STAGES).index(item[1].stage)))
GROUPS = [chatterbox_faults_voice, chatterbox_faults_t3, chatterbox_faults_s3gen, chatterbox_faults_vocoder]
Fault = chatterbox_plant.Fault
planted = chatterbox_plant.planted
mended = chatterbox_mends.mended
