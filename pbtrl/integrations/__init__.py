"""Parts of pbtrl for use in other libraries. Each file needs its library, which pbtrl does not install."""
