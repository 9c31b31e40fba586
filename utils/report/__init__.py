"""report.html: one page that shows what a clustering found, without a network or a server."""
