"""The tracking server or database: connection, settings and advice on its errors."""
