"""Parts and outputs as often as can be while a run goes on; a module of set-up for `faultpoints.Runs`."""

from pipeline.run import interim

interim.EVERY_S, interim.SHARE, interim._LOOK_S = 0.0, 1.0, 0.005
