"""Simulate readings of pumps with four faults: worn bearing, leak, cavitation, clogged filter.

    python datasets/pump_faults/simulate.py OUT_DIR --count 1500

The faults are drawn first, each by itself; the readings follow from them, from load and weather,
and from noise. Then labels and readings are taken away, completely at random.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd

FAULTS = ("bearing_worn", "leak", "cavitation", "filter_clogged")
SHARES = {"bearing_worn": 0.3, "leak": 0.25, "cavitation": 0.2, "filter_clogged": 0.35}
COVERAGE = {"bearing_worn": 0.90, "leak": 0.70, "cavitation": 0.50, "filter_clogged": 0.20}
SENSOR_GAPS = {"ambient_c": 0.05, "noise_db": 0.25}  # readings that are missing, too
SPLITS = {"train": 0.65, "val": 0.15, "test": 0.20}
DECIMALS = {"speed_rpm": 0, "oil_age_h": 0, "inlet_bar": 3, "flow_m3h": 2, "vibration_mm_s": 2}


def simulate(rng: np.random.Generator, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Readings and faults of so many pumps, each at one moment, with nothing missing.

    Shapes: readings (count, 12) float, faults (count, 4) int, 1 = the fault is there.
    """
    faults = pd.DataFrame({name: rng.random(count) < SHARES[name] for name in FAULTS}).astype(int)
    # How far a fault has gone: many are slight, and hard to tell.
    worn, leak, cavitation, clogged = (
        faults[name].to_numpy() * rng.beta(1.6, 2.0, count) for name in FAULTS
    )

    def noise(scale: float) -> np.ndarray:
        return rng.normal(0.0, scale, count)

    load = rng.beta(4, 2, count)
    speed = 1450 + 1450 * (rng.random(count) < 0.5) - 60 * load + noise(12)
    ambient = rng.normal(18, 8, count)
    oil_age = rng.gamma(2.0, 900, count)
    fast = speed / 2900
    inlet = 1.6 - 0.9 * clogged - 0.3 * load * fast - 0.35 * cavitation + noise(0.18)
    flow = 60 * load * fast * (1 - 0.45 * clogged - 0.25 * leak) * (1 - 0.2 * cavitation)
    outlet = 7.5 * fast**2 * (1 - 0.35 * load) - 1.6 * leak - 0.8 * cavitation
    vibration = np.exp(0.2 + 0.7 * fast + 0.9 * worn + 0.8 * cavitation + noise(0.3))
    high = np.exp(-1.0 + 1.6 * worn + 1.1 * cavitation + 0.00015 * oil_age + noise(0.45))
    current = 12 + 38 * load * fast**2 + 5 * worn + 6 * leak * load + noise(2.5)
    bearing = ambient + 22 + 14 * load * fast + 16 * worn + 0.002 * oil_age + noise(4)
    sound = 68 + 9 * fast + 7 * cavitation + 4 * worn + noise(2.5)
    readings = {
        "load": load,
        "speed_rpm": speed,
        "ambient_c": ambient,
        "oil_age_h": oil_age,
        "inlet_bar": inlet,
        "outlet_bar": np.maximum(outlet + noise(0.4), 0),
        "flow_m3h": np.maximum(flow + noise(2.5), 0),
        "current_a": current,
        "bearing_c": bearing,
        "vibration_mm_s": vibration,
        "vibration_high_g": high,
        "noise_db": sound,
    }
    rounded = {name: np.round(values, DECIMALS.get(name, 2)) for name, values in readings.items()}
    return pd.DataFrame(rounded), faults


def table(seed: int, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table with missing labels, and the same rows with nothing hidden."""
    rng = np.random.default_rng(seed)
    readings, faults = simulate(rng, count)
    ends = np.round(np.cumsum(list(SPLITS.values())) * count).astype(int)
    parts = np.repeat(list(SPLITS), np.diff(ends, prepend=0))
    full = pd.concat(
        [pd.Series(rng.permutation(parts), name="split"), readings, faults], axis=1
    ).astype(object)
    labels = full.copy()
    for name, share in COVERAGE.items():
        labels.loc[rng.random(count) >= share, name] = "?"
    for name, share in SENSOR_GAPS.items():
        labels.loc[rng.random(count) < share, name] = ""
    return labels, full


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="a folder, made if absent; files stay untouched")
    parser.add_argument("--count", type=int, default=1500, help="rows")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    targets = [args.out / "labels.csv", args.out / "labels_full.csv"]
    present = [str(target) for target in targets if target.exists()]
    if present:
        parser.error(f"{', '.join(present)} exists, and is never overwritten")
    for target, frame in zip(targets, table(args.seed, args.count), strict=True):
        aside = target.with_suffix(".writing")
        frame.to_csv(aside, index=False, lineterminator="\n")
        os.replace(aside, target)


if __name__ == "__main__":
    main()
