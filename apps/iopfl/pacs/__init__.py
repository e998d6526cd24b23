"""A PACS as the label server's datastore: its series are the images, and labels are stored in it."""
