"""DICOM studies on an object store become vertebra crops in a store of Zarr shards."""
