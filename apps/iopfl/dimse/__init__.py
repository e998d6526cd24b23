"""A DICOM node of our own: receives series, has them segmented by rule, sends the segmentations on.

Inwards: `scp` (associations, over bounded `sockets`) puts instances into the `inbox`, a folder per series;
`listening` takes a complete one, asks the `rules`, and puts the segmentation into the `outbox`; the `queue`
remembers on the disk how far each series is. Outwards: `scu`, to `peers`.
"""

import iopfl.dicomio  # noqa: F401  # quiets what would quote patients' names
