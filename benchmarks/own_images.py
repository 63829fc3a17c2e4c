"""A stranger's folder: the book's way against a plain U-Net, trained in turn here.

Same folder, split, encoder and weights, about as many seconds each (the chapter "Your
own images" defines both). Prints mean IoU on val and on test, and the minutes. Needs the
real data; trainings that are finished are read back from runs/.

    python -m benchmarks.own_images [buildings] [landcover] [membranes]
"""

import argparse

from utils import chapters, runs


def main():
    chapter = chapters.load("own_images")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(chapter.OURS))
    for name in parser.parse_args().names:
        for kind in ("ours", "plain"):
            run = chapter.RUNS[name, kind]
            _, record = runs.obtain(run, "all")
            numbers = record.numbers
            print(
                f"{name}, {run.stages[0].kind}: {record.parameters:,} weights, "
                f"{record.minutes:.1f} minutes, mean IoU {numbers['val']:.3f} on val, "
                f"{numbers['test']:.3f} ({numbers['test, low']:.3f} to "
                f"{numbers['test, high']:.3f}) on test",
                flush=True,
            )


if __name__ == "__main__":
    main()
