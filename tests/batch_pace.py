"""Imported, it makes the waits of batches short, and batches small: every rule stays as it is."""

from pipeline.batch import cutting, desk, room, submitting, watching
from pipeline.providers import resumable
from pipeline.providers.batches import disk
from pipeline.run import rounds

submitting.FENCE_S = 1.3
submitting.LOOK_S = 0.3
submitting.PAUSES_S = (0.05, 0.1, 0.2, 0.4)
watching.POLL_S = vars(desk)["POLL_S"] = (0.1, 0.5)
watching.CANCELLED_POLL_S = 0.1
cutting.LEAST_LINES = 8
room.HOLDS_S = (0.3, 0.6, 0.9)
rounds.LOOK_S = 0.05
resumable._WAITS_S = disk.WAITS_S = (0.05, 0.1, 0.2, 0.4)
