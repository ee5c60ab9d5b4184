from tests.archive_servers import postgres, postgresql, server, sqlite, supabase

__all__ = ["postgres", "postgresql", "server", "sqlite", "supabase"]
