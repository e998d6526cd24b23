"""Small files in the layouts that public data sets are published in."""

import gzip
import io

import nibabel as nib
import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def write_picture(path, array, mode=None):
    """Write a picture in the format of its name; `.ppm.gz` is gzipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    picture = picture.convert(mode) if mode else picture
    if path.suffix == ".gz":
        plain = io.BytesIO()
        picture.save(plain, format="PPM")
        path.write_bytes(gzip.compress(plain.getvalue()))
    else:
        picture.save(path)


def photo(height=24, width=32):
    return RNG.integers(0, 255, (height, width, 3), dtype=np.uint8)


def vessels(height=24, width=32):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[5:8] = 255
    return mask


def make_drive(root, *, test_labels=True):
    for number in (1, 2):
        write_picture(root / f"test/images/{number:02d}_test.tif", photo())
        if test_labels:
            write_picture(root / f"test/1st_manual/{number:02d}_manual1.gif", vessels(), "P")
    for number in range(21, 26):
        write_picture(root / f"training/images/{number}_training.tif", photo())
        write_picture(root / f"training/1st_manual/{number}_manual1.gif", vessels(), "P")
        write_picture(root / f"training/mask/{number}_training_mask.gif", vessels(), "P")


def make_chase(root):
    for key in ("01L", "01R", "02L", "02R", "03L", "03R"):
        write_picture(root / f"Image_{key}.jpg", photo())
        write_picture(root / f"Image_{key}_1stHO.png", vessels(), "1")
        write_picture(root / f"Image_{key}_2ndHO.png", vessels().T.copy(), "1")


def make_stare(root, suffix=".ppm.gz"):
    for number in (1, 2, 3, 139):
        write_picture(root / f"stare-images/im{number:04d}{suffix}", photo())
        write_picture(root / f"labels-ah/im{number:04d}.ah{suffix}", vessels())
        write_picture(root / f"labels-vk/im{number:04d}.vk{suffix}", vessels())


def make_hrf(root):
    for number in (1, 2, 3):
        for kind in ("dr", "g", "h"):
            extension = "JPG" if kind == "dr" else "jpg"
            write_picture(root / f"images/{number:02d}_{kind}.{extension}", photo())
            write_picture(root / f"manual1/{number:02d}_{kind}.tif", vessels())
            write_picture(root / f"mask/{number:02d}_{kind}_mask.tif", vessels())


def write_volume(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def make_prostate(root, sites=("BIDMC", "HK", "UCL")):
    """Sites as downloaded: zones at BIDMC, other spelling at HK, `.nii` at UCL."""
    affine = np.diag([-0.5, -0.5, 3.0, 1.0])
    for site in sites:
        for case in range(3):
            image = RNG.integers(0, 900, (8, 9, 4)).astype(np.int16)
            label = np.zeros((8, 9, 4), dtype=np.uint8)
            label[3:5, 3:6, 1:3] = 1
            if site == "BIDMC":
                label[4, 4, 1:3] = 2
            word = "Segmentation" if site == "HK" else "segmentation"
            extension = "nii" if site == "UCL" else "nii.gz"
            write_volume(root / site / f"Case{case:02d}.{extension}", image, affine)
            write_volume(root / site / f"Case{case:02d}_{word}.{extension}", label, affine)


def gray_mask(side=40):
    """255 background, 128 rim, 0 cup, as REFUGE and the DoFE crops have it."""
    mask = np.full((side, side), 255, dtype=np.uint8)
    mask[10:30, 10:30] = 128
    mask[15:25, 15:25] = 0
    return mask


def make_domains(root):
    names = {
        "Domain1": (["gdrishtiGS_002", "ndrishtiGS_089"], ["gdrishtiGS_001"]),
        "Domain2": (["G-1-L", "N-2-L"], ["G-1-R"]),
        "Domain3": (["g0003", "n0001"], ["g0001"]),
        "Domain4": (["V0001", "V0002"], ["V0003"]),
    }
    for domain, parts in names.items():
        for part, stems in zip(("train", "test"), parts, strict=True):
            for stem in stems:
                rois = root / domain / part / "ROIs"
                write_picture(rois / "image" / f"{stem}.png", photo(40, 40))
                write_picture(rois / "mask" / f"{stem}.png", gray_mask())


def make_originals(root):
    """Drishti-GS, RIM-ONE r3 and REFUGE, reduced in size."""
    disc, cup = (np.where(gray_mask() < limit, 255, 0).astype(np.uint8) for limit in (200, 50))
    for part, numbers in (("Training", (2, 4)), ("Test", (1,))):
        for number in numbers:
            stem, base = f"drishtiGS_{number:03d}", root / "Drishti-GS1_files" / part
            write_picture(base / "Images" / f"{stem}.png", photo(42, 41))
            soft = base / ("Test_GT" if part == "Test" else "GT") / stem / "SoftMap"
            write_picture(soft / f"{stem}_ODsegSoftmap.png", disc)
            write_picture(soft / f"{stem}_cupsegSoftmap.png", cup)
    for kind, keys in (("Healthy", ("N-1-L", "N-1-R")), ("Glaucoma and suspects", ("G-5-R",))):
        for key in keys:
            base = root / "RIM-ONE r3" / kind
            write_picture(base / "Stereo Images" / f"{key}.jpg", photo(40, 80))
            for word, mask in (("Disc", disc), ("Cup", cup)):
                both = np.hstack([mask, np.zeros_like(mask)])
                write_picture(base / "Average_masks" / f"{key}-{word}-Avg.png", both)
    refuge = root / "REFUGE"
    masks = "Annotation-Training400/Disc_Cup_Masks"
    for kind, stem in (("Glaucoma", "g0001"), ("Non-Glaucoma", "n0001")):
        write_picture(refuge / "Training400" / kind / f"{stem}.jpg", photo(40, 40))
        write_picture(refuge / masks / kind / f"{stem}.bmp", gray_mask())
    for stem in ("V0001", "V0002"):
        write_picture(refuge / "REFUGE-Validation400" / f"{stem}.jpg", photo(40, 40))
        write_picture(refuge / f"REFUGE-Validation400-GT/Disc_Cup_Masks/{stem}.bmp", gray_mask())


MAKERS = {
    "prostate": make_prostate,
    "optic_disc_cup": make_domains,
    "drive": make_drive,
    "chase_db1": make_chase,
    "stare": make_stare,
    "hrf": make_hrf,
}
