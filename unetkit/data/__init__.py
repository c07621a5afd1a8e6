"""Images and masks: data sets from folders, by name and generated; mask encodings; augmentation."""
