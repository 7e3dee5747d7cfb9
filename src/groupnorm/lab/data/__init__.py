"""Labelled images: bundled, downloaded, on the disk, a folder of the user's, or a function of the user's.

:func:`load` opens any of them by name and always returns the same thing, a :class:`Dataset`. Importing this
package is light; the libraries that decode and download are imported when a dataset is opened.
"""

from groupnorm.lab.data.catalog import DATASETS, OWN, DatasetRow
from groupnorm.lab.data.data_paths import default_data_dir
from groupnorm.lab.data.dataset import Dataset, Images
from groupnorm.lab.data.errors import DataError
from groupnorm.lab.data.files import ImageFiles
from groupnorm.lab.data.load import load

__all__ = ["DATASETS", "OWN", "DataError", "Dataset", "DatasetRow", "ImageFiles", "Images", "default_data_dir", "load"]
