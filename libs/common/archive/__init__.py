"""What people query: tables that services declare, kept in SQLite, PostgreSQL or Supabase."""
