"""What a browser shows: our page and OHIF, their routes, and pictures of results."""
