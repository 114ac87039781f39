"""Where samples come from: files, the hub, and data sets that come with installed packages."""
