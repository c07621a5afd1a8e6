"""Images and masks: data sets as folders and made on the fly, what masks mean, augmentation."""
