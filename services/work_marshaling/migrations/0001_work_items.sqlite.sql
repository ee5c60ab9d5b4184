-- Finished work, one row per item. `result` and `payload` are there when they are small.
create table work_items (
    work_id text not null primary key,
    sequence bigint not null,
    status text not null,
    work_type text not null,
    model_name text,
    node_id text,
    submitter text,
    retry_of text,
    priority bigint not null,
    labels text not null,
    submitted_at text not null,
    ended_at text not null,
    max_attempts bigint not null,
    attempts text not null,
    error text,
    result text,
    result_bytes bigint not null,
    item text not null,
    payload text,
    payload_bytes bigint not null,
    digest text not null,
    log_seq bigint not null
);
create index work_items_ended_at on work_items (ended_at);
create index work_items_submitted_at on work_items (submitted_at);
create index work_items_sequence on work_items (sequence);
create index work_items_status_submitted_at on work_items (status, submitted_at);
create index work_items_node_id_submitted_at on work_items (node_id, submitted_at);
create trigger work_items_keep_newest before update on work_items when new.log_seq < old.log_seq
begin
    select raise(ignore);
end;
