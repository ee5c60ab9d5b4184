-- Finished work, one row per item. `result` is there when it is small.
create table work_items (
    work_id text not null primary key,
    sequence bigint not null,
    status text not null,
    work_type text not null,
    model_name text,
    node_id text,
    submitter text,
    priority bigint not null,
    labels text not null,
    submitted_at text not null,
    ended_at text not null,
    attempts text not null,
    error text,
    result text,
    result_bytes bigint not null,
    log_seq bigint not null
);
create index work_items_ended_at on work_items (ended_at);
create index work_items_sequence on work_items (sequence);
create index work_items_status_ended_at on work_items (status, ended_at);
create index work_items_node_id_ended_at on work_items (node_id, ended_at);
create trigger work_items_keep_newest before update on work_items when new.log_seq < old.log_seq
begin
    select raise(ignore);
end;
