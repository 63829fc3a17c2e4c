"""What is said of a reader's folder: faults, warnings, notes and tables, as text."""

SHOWN = 6  # lines of one kind, before the rest are only counted


class Report:
    """Findings in the order in which they came up; `str` gives them as Markdown.

    faults: sentences on what keeps the files from being used; warnings: on what may be
    wrong; notes: on what was done with the files. Each names a file, where it is about
    one. title: what was found, in a line.
    """

    def __init__(self):
        self.title = ""
        self.tables = []
        self._found = {"fault": {}, "warning": {}, "note": {}}

    def fault(self, kind, sentence):
        """Adds a fault; those of one kind (a word) are listed together."""
        self._found["fault"].setdefault(kind, []).append(str(sentence))

    def warn(self, kind, sentence):
        self._found["warning"].setdefault(kind, []).append(str(sentence))

    def note(self, kind, sentence):
        self._found["note"].setdefault(kind, []).append(str(sentence))

    def table(self, heads, rows):
        """Adds a table of texts, `heads` over its columns; the first is to the left."""
        self.tables.append([list(heads), *(list(row) for row in rows)])

    @property
    def faults(self):
        return self._all("fault")

    @property
    def warnings(self):
        return self._all("warning")

    @property
    def notes(self):
        return self._all("note")

    def _all(self, what):
        return [line for lines in self._found[what].values() for line in lines]

    def brief(self, what):
        """The lines of "fault", "warning" or "note": few of each kind, more counted."""
        lines = []
        for found in self._found[what].values():
            lines += found[:SHOWN]
            if len(found) > SHOWN:
                more = len(found) - SHOWN
                lines.append(f"… and {more} more like the last: `report.{what}s`")
        return lines

    def __str__(self):
        parts = [self.title] if self.title else []
        parts += [as_text(table) for table in self.tables]
        for what in self._found:
            lines = self.brief(what)
            if lines:
                count = counted(len(self._all(what)), what)
                parts.append(
                    "\n".join([f"**{count}**", "", *(f"- {t}" for t in lines)])
                )
        if not self.faults:
            parts.append("No faults: `data.folder` can load these files.")
        return "\n\n".join(parts)

    def _repr_markdown_(self):
        return str(self)


def as_text(table):
    """Rows of texts as a Markdown table whose columns line up."""
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    rule = ["-" * width if k == 0 else "-" * (width - 1) + ":" for k, width in
            enumerate(max(width, 3) for width in widths)]  # fmt: skip
    lines = []
    for row in [table[0], rule, *table[1:]]:
        cells = [
            text.ljust(w) if k == 0 else text.rjust(w)
            for k, (text, w) in enumerate(zip(row, (max(w, 3) for w in widths)))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def counted(number, noun):
    """ "1 image", "2 images", "3 boxes"."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{number:,} {noun}{ending}"


def some(things, most=3):
    """The first few of some things as text, and how many more there are."""
    things = [str(thing) for thing in things]
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more
