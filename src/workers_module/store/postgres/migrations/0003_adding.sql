-- min_code: 3
--
-- Store jobs. Specs come as arrays, one element each (or one for all, where all are alike; but for p_data): p_at names the queue by its place in p_queues, p_above the parent
-- by the place of its spec. Rows out: ord, id, state and existing (0 new, 1 same id, 2 deduplicated), one a spec; or a
-- single row whose ord is negative: -1 the parent (id in queue) is unknown, -2 the spec names itself, -3 it has another
-- parent (queue and id), -4 this is not the database p_home; at is the spec. A refused call has changed nothing.

-- Jobs of one queue that depend on nothing, and whose ids are chosen here: nothing is there to be met.
CREATE FUNCTION added_new(
    p_q int, p_names bytea[], p_data bytea[], p_opts bytea[], p_priority int[], p_lifo boolean[], p_stamp bigint[],
    p_due bigint[], p_delay bigint[], p_max int[], p_tags text[], p_on_crash boolean[], p_policy smallint[], p_now bigint
) RETURNS TABLE (ord bigint, id text, state int, existing int) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    w queue;
    v_ids text[];
    v_states int[];
    v_dues bigint[];
    v_names bytea[];
    v_count int := cardinality(p_data);
    v_delayed int;
    v_high int;
BEGIN
    SELECT * INTO w FROM queue WHERE q = p_q;
    -- An id that somebody stored as a number of their own just now makes this fail, and is not met again.
    WITH new AS (
        INSERT INTO job (n, q, state, tagset, priority, seq, due, added, max_attempts, lifo, on_crash, policy, id, name,
            opts, data)
        SELECT n, p_q, CASE WHEN ready > p_now THEN 2 ELSE 1 END,
            CASE WHEN tags IS NULL THEN 0 ELSE tagset_made(p_q, string_to_array(tags, E'\x1f')) END, priority,
            CASE WHEN lifo AND priority = 0 AND (ready > p_now) IS NOT TRUE THEN -1024 ELSE 1024 END * n,
            CASE WHEN ready > p_now THEN ready END, coalesce(stamp, p_now), max, lifo, on_crash, policy,
            nextval(w.ids)::text, name, opts, data
        FROM (
            SELECT u.*, nextval('place') AS n,
                CASE WHEN u.due IS NOT NULL THEN u.due WHEN u.delay > 0 THEN coalesce(u.stamp, p_now) + u.delay END AS ready
            FROM unnest(p_names, p_data, p_opts, p_priority, p_lifo, p_stamp, p_due, p_delay, p_max, p_tags, p_on_crash,
                p_policy) AS u(name, data, opts, priority, lifo, stamp, due, delay, max, tags, on_crash, policy)
        ) given
        RETURNING job.n, job.id, shown(job.state, job.priority) AS state, job.due, job.name
    )
    SELECT array_agg(new.id ORDER BY new.n), array_agg(new.state ORDER BY new.n), array_agg(new.due ORDER BY new.n),
        array_agg(new.name ORDER BY new.n), count(*) FILTER (WHERE new.state = 2), count(*) FILTER (WHERE new.state = 7)
    INTO v_ids, v_states, v_dues, v_names, v_delayed, v_high FROM new;
    PERFORM counted(p_q, ARRAY[v_count - v_delayed - v_high, v_delayed, 0, 0, 0, 0, v_high]);
    IF v_delayed = 0 THEN
        PERFORM written(p_q, w.events, 2 * v_count, array_fill('n'::text, ARRAY[v_count]), v_ids, v_names, NULL);
    ELSE
        PERFORM written(p_q, ARRAY(
            SELECT unnest(ARRAY[
                ROW('added', u.id, u.name, NULL)::told,
                CASE WHEN u.due IS NULL THEN ROW('waiting', u.id, NULL, NULL)::told
                ELSE ROW('delayed', u.id, raw(u.due::text), NULL)::told END])
            FROM unnest(v_ids, v_names, v_dues) WITH ORDINALITY u(id, name, due, o) ORDER BY u.o));
    END IF;
    RETURN QUERY SELECT u.o, u.id, u.state, 0 FROM unnest(v_ids, v_states) WITH ORDINALITY u(id, state, o);
END $$;

-- Jobs that depend on nothing but their ids, set by set.
CREATE FUNCTION added_plain(
    p_qs int[], p_ids text[], p_names bytea[], p_data bytea[], p_opts bytea[], p_priority int[], p_lifo boolean[],
    p_stamp bigint[], p_due bigint[], p_delay bigint[], p_max int[], p_tags text[], p_on_crash boolean[],
    p_policy smallint[], p_given text[], p_now bigint
) RETURNS TABLE (ord bigint, id text, state int, existing int) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_new bigint[];
    v_states int[];
    v_dues bigint[];
    v_q int;
    v_events told[];
    d bigint[];
BEGIN
    WITH given AS MATERIALIZED (
        SELECT u.*, nextval('place') AS n,
            CASE WHEN u.due IS NOT NULL THEN u.due WHEN u.delay > 0 THEN coalesce(u.stamp, p_now) + u.delay END AS ready
        FROM unnest(p_qs, p_ids, p_names, p_data, p_opts, p_priority, p_lifo, p_stamp, p_due, p_delay, p_max, p_tags,
            p_on_crash, p_policy) WITH ORDINALITY
            AS u(q, id, name, data, opts, priority, lifo, stamp, due, delay, max, tags, on_crash, policy, o)
    ), new AS (
        INSERT INTO job (n, q, state, tagset, priority, seq, due, added, max_attempts, lifo, on_crash, policy, id, name,
            opts, data)
        SELECT n, q, CASE WHEN ready > p_now THEN 2 ELSE 1 END,
            CASE WHEN tags IS NULL THEN 0 ELSE tagset_made(q, string_to_array(tags, E'\x1f')) END, priority,
            CASE WHEN lifo AND priority = 0 AND (ready > p_now) IS NOT TRUE THEN -1024 ELSE 1024 END * n,
            CASE WHEN ready > p_now THEN ready END, coalesce(stamp, p_now), max, lifo, on_crash, policy, id, name, opts,
            data
        FROM given
        ON CONFLICT (q, id) DO NOTHING
        RETURNING job.n, job.state, job.priority, job.due
    )
    SELECT array_agg(new.n ORDER BY given.o), array_agg(shown(new.state, new.priority) ORDER BY given.o),
        array_agg(new.due ORDER BY given.o)
    INTO v_new, v_states, v_dues
    FROM given LEFT JOIN new ON new.n = given.n;
    IF EXISTS (SELECT 1 FROM unnest(v_new, p_given) u(n, id) WHERE u.n IS NULL AND u.id IS NULL) THEN
        -- A chosen id was taken: somebody stored a number of their own just now.
        RAISE EXCEPTION 'an id was taken twice' USING ERRCODE = '40001';
    END IF;
    FOR v_q IN SELECT DISTINCT u.q FROM unnest(p_qs) u(q) LOOP
        SELECT array_agg(e ORDER BY s.o, s.k), ARRAY[
                count(*) FILTER (WHERE s.k = 2 AND s.shown = 1), count(*) FILTER (WHERE s.k = 2 AND s.shown = 2), 0, 0, 0, 0,
                count(*) FILTER (WHERE s.k = 2 AND s.shown = 7)]
        INTO v_events, d
        FROM (
            SELECT u.o, 1 AS k, 0 AS shown,
                CASE WHEN u.n IS NULL THEN ROW('duplicated', u.id, NULL, NULL)::told
                ELSE ROW('added', u.id, u.name, NULL)::told END AS e
            FROM unnest(v_new, p_qs, p_ids, p_names) WITH ORDINALITY u(n, q, id, name, o) WHERE u.q = v_q
            UNION ALL
            SELECT u.o, 2, u.state,
                CASE WHEN u.state = 2 THEN ROW('delayed', u.id, raw(u.due::text), NULL)::told
                ELSE ROW('waiting', u.id, NULL, NULL)::told END
            FROM unnest(v_new, p_qs, p_ids, v_states, v_dues) WITH ORDINALITY u(n, q, id, state, due, o)
            WHERE u.q = v_q AND u.n IS NOT NULL
        ) s;
        PERFORM counted(v_q, d);
        PERFORM written(v_q, v_events);
    END LOOP;
    RETURN QUERY SELECT u.o, u.id,
            coalesce(u.state, (SELECT shown(j.state, j.priority) FROM job j WHERE j.q = u.q AND j.id = u.id)),
            CASE WHEN u.n IS NULL THEN 1 ELSE 0 END
        FROM unnest(v_new, p_qs, p_ids, v_states) WITH ORDINALITY u(n, q, id, state, o);
END $$;

-- Decide whether a job counts; null means yes, and its key is taken, else the job that holds the key.
CREATE FUNCTION deduplicated(p_q int, p_queue text, s spec, p_mode text, p_ttl bigint, p_now bigint)
RETURNS dedup LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    d dedup;
    o job;
    v_until bigint := CASE WHEN p_mode = 'keep_latest' THEN NULL ELSE p_now + p_ttl END;
    v_due bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || '.key.' || s.dedup, p_q));
    IF p_mode IN ('simple', 'throttle') THEN
        -- Without a lock: a transaction left open must not keep the holder of the key from ending.
        SELECT * INTO d FROM dedup WHERE q = p_q AND key = s.dedup;
        IF d.id IS NOT NULL THEN
            SELECT * INTO o FROM job WHERE q = p_q AND id = d.id;
        END IF;
    ELSE
        SELECT * INTO d FROM dedup WHERE q = p_q AND key = s.dedup FOR UPDATE;
        IF d.id IS NOT NULL THEN
            SELECT * INTO o FROM job WHERE q = p_q AND id = d.id FOR UPDATE;
        END IF;
    END IF;
    IF d.id IS NOT NULL AND (CASE WHEN d.until IS NULL THEN o.n IS NULL ELSE d.until <= p_now END) THEN
        d := NULL;
    END IF;
    IF d.id IS NOT NULL AND p_mode = 'debounce' AND o.state = 2 THEN
        PERFORM child_gone(p_queue, o, p_now);
        PERFORM deleted(o);
        PERFORM tell(p_q, 'removed', o.id, NULL, 'delayed');
        PERFORM tell(p_q, 'deduplicated', s.id, raw(s.dedup), o.id);
        d := NULL;
    END IF;
    IF d.id IS NULL THEN
        INSERT INTO dedup (q, key, id, until) VALUES (p_q, s.dedup, s.id, v_until)
        ON CONFLICT (q, key) DO UPDATE SET id = excluded.id, until = excluded.until, next = NULL;
        RETURN NULL;
    END IF;
    IF p_mode = 'debounce' THEN
        RETURN d;
    END IF;
    IF p_mode = 'extend' THEN
        UPDATE dedup SET until = v_until WHERE q = p_q AND key = s.dedup;
    ELSIF p_mode = 'keep_latest' AND o.state = 3 THEN
        -- Kept without its stamp: it counts as created when its turn comes.
        UPDATE dedup SET until = NULL, next = (s.id, s.name, s.data, s.opts, s.priority, s.lifo, NULL, s.due, s.delay,
            s.max_attempts, s.tags, s.on_crash, 0, NULL, NULL, s.dedup, NULL)::spec
        WHERE q = p_q AND key = s.dedup;
    END IF;
    PERFORM tell(p_q, 'deduplicated', d.id, raw(s.dedup), s.id);
    IF p_mode = 'reschedule' AND o.state = 2 THEN
        v_due := coalesce(s.due, coalesce(s.stamp, p_now) + s.delay);
        UPDATE job SET due = v_due, seq = behind() WHERE q = o.q AND id = o.id;
        PERFORM tell(p_q, 'delayed', o.id, raw(v_due::text), NULL);
    END IF;
    RETURN d;
END $$;

-- Make queues and sets of tags that are not there, out of sight, so that no transaction left open holds them back.
CREATE FUNCTION make_1(p_queues text[], p_tags text[]) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    v_q int;
BEGIN
    PERFORM news_begun();
    FOR k IN 1 .. cardinality(p_queues) LOOP
        v_q := queue_found(p_queues[k]);
        IF v_q IS NULL THEN
            v_q := queue_made(p_queues[k]);
            UPDATE queue SET gone = true WHERE q = v_q;
        END IF;
        PERFORM tagset_made(v_q, string_to_array(p_tags[k], E'\x1f'));
    END LOOP;
END $$;

-- p_home is given by a transaction of the application's: the database it must be in. p_channel is told when it commits.
CREATE FUNCTION add_1(
    p_queues text[], p_at int[], p_ids text[], p_names bytea[], p_data bytea[], p_opts bytea[], p_priority int[],
    p_lifo boolean[], p_stamp bigint[], p_due bigint[], p_delay bigint[], p_max int[], p_tags text[],
    p_on_crash boolean[], p_policy smallint[], p_schedule text[], p_parent_queue text[], p_parent_id text[],
    p_above int[], p_key text[], p_mode text[], p_ttl bigint[], p_plain boolean, p_home text, p_channel text,
    p_instant bigint
) RETURNS TABLE (ord bigint, id text, state int, existing int, queue text, at int)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_mergejoin = off
SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_count int := cardinality(p_data);
    v_qs int[];
    v_all int[];
    v_ids text[] := p_ids;
    v_seqs regclass[];
    v_parents boolean[] := array_fill(false, ARRAY[cardinality(p_data)]);
    v_owners text[] := array_fill(NULL::text, ARRAY[cardinality(p_data)]);
    v_known boolean[] := array_fill(false, ARRAY[cardinality(p_data)]);
    v_q int;
    v_state int;
    v_want text;
    v_cur text;
    v_n bigint;
    v_tie bigint;
    s spec;
    d dedup;
    c job;
    p job;
BEGIN
    IF v_count > 1 THEN
        IF cardinality(p_at) = 1 THEN p_at := array_fill(p_at[1], ARRAY[v_count]); END IF;
        IF cardinality(p_ids) = 1 THEN p_ids := array_fill(p_ids[1], ARRAY[v_count]); END IF;
        IF cardinality(p_names) = 1 THEN p_names := array_fill(p_names[1], ARRAY[v_count]); END IF;
        IF cardinality(p_opts) = 1 THEN p_opts := array_fill(p_opts[1], ARRAY[v_count]); END IF;
        IF cardinality(p_priority) = 1 THEN p_priority := array_fill(p_priority[1], ARRAY[v_count]); END IF;
        IF cardinality(p_lifo) = 1 THEN p_lifo := array_fill(p_lifo[1], ARRAY[v_count]); END IF;
        IF cardinality(p_stamp) = 1 THEN p_stamp := array_fill(p_stamp[1], ARRAY[v_count]); END IF;
        IF cardinality(p_due) = 1 THEN p_due := array_fill(p_due[1], ARRAY[v_count]); END IF;
        IF cardinality(p_delay) = 1 THEN p_delay := array_fill(p_delay[1], ARRAY[v_count]); END IF;
        IF cardinality(p_max) = 1 THEN p_max := array_fill(p_max[1], ARRAY[v_count]); END IF;
        IF cardinality(p_tags) = 1 THEN p_tags := array_fill(p_tags[1], ARRAY[v_count]); END IF;
        IF cardinality(p_on_crash) = 1 THEN p_on_crash := array_fill(p_on_crash[1], ARRAY[v_count]); END IF;
        IF cardinality(p_policy) = 1 THEN p_policy := array_fill(p_policy[1], ARRAY[v_count]); END IF;
        IF cardinality(p_schedule) = 1 THEN p_schedule := array_fill(p_schedule[1], ARRAY[v_count]); END IF;
        IF cardinality(p_parent_queue) = 1 THEN p_parent_queue := array_fill(p_parent_queue[1], ARRAY[v_count]); END IF;
        IF cardinality(p_parent_id) = 1 THEN p_parent_id := array_fill(p_parent_id[1], ARRAY[v_count]); END IF;
        IF cardinality(p_above) = 1 THEN p_above := array_fill(p_above[1], ARRAY[v_count]); END IF;
        IF cardinality(p_key) = 1 THEN p_key := array_fill(p_key[1], ARRAY[v_count]); END IF;
        IF cardinality(p_mode) = 1 THEN p_mode := array_fill(p_mode[1], ARRAY[v_count]); END IF;
        IF cardinality(p_ttl) = 1 THEN p_ttl := array_fill(p_ttl[1], ARRAY[v_count]); END IF;
        v_ids := p_ids;
    END IF;
    IF p_home IS NOT NULL AND NOT EXISTS (SELECT 1 FROM meta WHERE key = 'home' AND value = p_home) THEN
        RETURN QUERY SELECT -4::bigint, NULL::text, 0, 0, NULL::text, 0;
        RETURN;
    END IF;
    PERFORM news_begun(p_home IS NOT NULL);
    IF p_plain THEN
        IF cardinality(p_queues) = 1 AND array_remove(p_ids, NULL) = '{}' THEN
            RETURN QUERY SELECT a.ord, a.id, a.state, a.existing, NULL::text, NULL::int
                FROM added_new(queue_made(p_queues[1]), p_names, p_data, p_opts, p_priority, p_lifo, p_stamp, p_due,
                    p_delay, p_max, p_tags, p_on_crash, p_policy, v_now) a;
            IF p_channel IS NOT NULL THEN
                PERFORM pg_notify(p_channel, p_queues[1]);
            END IF;
            RETURN;
        END IF;
        SELECT array_agg(queue_made(u.name) ORDER BY u.o) INTO v_qs FROM unnest(p_queues) WITH ORDINALITY u(name, o);
        SELECT array_agg(v_qs[u.at] ORDER BY u.o) INTO v_all FROM unnest(p_at) WITH ORDINALITY u(at, o);
        FOR i IN 1 .. cardinality(v_qs) LOOP
            v_seqs[i] := (SELECT ids FROM queue WHERE q = v_qs[i]);
        END LOOP;
        FOR i IN 1 .. v_count LOOP
            IF v_ids[i] IS NULL THEN
                v_ids[i] := nextval(v_seqs[p_at[i]])::text;
            ELSIF ascii(v_ids[i]) BETWEEN 48 AND 57 THEN
                PERFORM id_noted(v_all[i], v_ids[i]);
            END IF;
        END LOOP;
        RETURN QUERY SELECT a.ord, a.id, a.state, a.existing, NULL::text, NULL::int
            FROM added_plain(v_all, v_ids, p_names, p_data, p_opts, p_priority, p_lifo, p_stamp, p_due, p_delay, p_max,
                p_tags, p_on_crash, p_policy, p_ids, v_now) a;
        IF p_channel IS NOT NULL THEN
            PERFORM pg_notify(p_channel, name) FROM unnest(p_queues) name;
        END IF;
        RETURN;
    END IF;

    FOR i IN 1 .. v_count LOOP
        IF p_above[i] IS NOT NULL THEN
            v_parents[p_above[i]] := true;
        END IF;
    END LOOP;
    -- Refuse parents that are not there, and children that have another one, before anything is written.
    FOR i IN 1 .. v_count LOOP
        v_want := NULL;
        IF p_above[i] IS NOT NULL THEN
            v_want := p_queues[p_at[p_above[i]]] || E'\x1f' || coalesce(p_ids[p_above[i]], E'\x1f' || p_above[i]);
        ELSIF p_parent_id[i] IS NOT NULL THEN
            v_want := p_parent_queue[i] || E'\x1f' || p_parent_id[i];
            IF NOT EXISTS (SELECT 1 FROM generate_series(1, i - 1) k
                    WHERE p_queues[p_at[k]] = p_parent_queue[i] AND p_ids[k] = p_parent_id[i])
                AND NOT EXISTS (SELECT 1 FROM job WHERE q = queue_found(p_parent_queue[i]) AND id = p_parent_id[i]) THEN
                RETURN QUERY SELECT -1::bigint, p_parent_id[i], 0, 0, p_parent_queue[i], i;
                RETURN;
            END IF;
        END IF;
        CONTINUE WHEN p_ids[i] IS NULL;
        v_cur := NULL;
        v_n := NULL;
        SELECT max(k) INTO v_n FROM generate_series(1, i - 1) k
        WHERE p_at[k] = p_at[i] AND p_ids[k] = p_ids[i] AND p_key[k] IS NULL;
        IF v_n IS NOT NULL THEN
            v_cur := v_owners[v_n];
        ELSE
            SELECT * INTO c FROM job WHERE q = queue_found(p_queues[p_at[i]]) AND id = p_ids[i];
            IF c.parent_queue IS NOT NULL AND EXISTS (
                SELECT 1 FROM job WHERE q = queue_found(c.parent_queue) AND id = c.parent_id) THEN
                v_cur := c.parent_queue || E'\x1f' || c.parent_id;
            END IF;
        END IF;
        IF v_want = p_queues[p_at[i]] || E'\x1f' || p_ids[i] THEN
            RETURN QUERY SELECT -2::bigint, p_ids[i], 0, 0, p_queues[p_at[i]], i;
            RETURN;
        ELSIF v_want IS NOT NULL AND v_cur IS NOT NULL AND v_cur <> v_want THEN
            RETURN QUERY SELECT -3::bigint, split_part(v_cur, E'\x1f', 2), 0, 0, split_part(v_cur, E'\x1f', 1), i;
            RETURN;
        END IF;
        v_owners[i] := coalesce(v_want, v_cur);
    END LOOP;

    SELECT array_agg(queue_made(u.name) ORDER BY u.o) INTO v_qs FROM unnest(p_queues) WITH ORDINALITY u(name, o);
    SELECT array_agg(v_qs[u.at] ORDER BY u.o) INTO v_all FROM unnest(p_at) WITH ORDINALITY u(at, o);
    FOR i IN 1 .. v_count LOOP
        IF p_ids[i] IS NOT NULL THEN
            PERFORM id_noted(v_all[i], p_ids[i]);
        END IF;
    END LOOP;
    -- A parent without an id gets it with its first child.
    FOR i IN 1 .. v_count LOOP
        IF p_above[i] IS NOT NULL AND v_ids[p_above[i]] IS NULL THEN
            v_ids[p_above[i]] := id_chosen(v_all[p_above[i]]);
        END IF;
        IF v_ids[i] IS NULL THEN
            v_ids[i] := id_chosen(v_all[i]);
        END IF;
    END LOOP;

    FOR i IN 1 .. v_count LOOP
        v_q := v_all[i];
        s := (v_ids[i], p_names[i], p_data[i], p_opts[i], p_priority[i], p_lifo[i], p_stamp[i], p_due[i], p_delay[i],
            p_max[i], string_to_array(p_tags[i], E'\x1f'), p_on_crash[i], p_policy[i],
            coalesce(p_queues[p_at[p_above[i]]], p_parent_queue[i]), coalesce(v_ids[p_above[i]], p_parent_id[i]),
            p_key[i], p_schedule[i])::spec;
        c := NULL;
        IF p_ids[i] IS NOT NULL THEN
            SELECT * INTO c FROM job WHERE q = v_q AND id = s.id;
        END IF;
        IF c.n IS NULL THEN
            IF s.dedup IS NOT NULL THEN
                d := deduplicated(v_q, p_queues[p_at[i]], s, p_mode[i], p_ttl[i], v_now);
                IF d.id IS NOT NULL THEN
                    SELECT * INTO c FROM job WHERE q = v_q AND id = d.id;
                    RETURN QUERY SELECT i::bigint, d.id, coalesce(shown(c.state, c.priority), 4), 2, NULL::text, i;
                    CONTINUE;
                END IF;
            END IF;
            v_n := nextval('place');
            v_state := placed(v_q, v_n, s, v_parents[i], v_now);
            IF v_state IS NULL THEN
                -- Somebody else has just stored this id.
                RAISE EXCEPTION 'an id was taken twice' USING ERRCODE = '40001';
            END IF;
            IF p_above[i] IS NULL AND s.parent_id IS NOT NULL THEN
                SELECT * INTO c FROM job WHERE q = v_q AND id = s.id;
                PERFORM adopted(j, p_queues[p_at[i]], c) FROM job j
                WHERE j.q = queue_found(s.parent_queue) AND j.id = s.parent_id;
            END IF;
            IF NOT v_parents[i] THEN
                RETURN QUERY SELECT i::bigint, s.id, v_state, 0, NULL::text, i;
            END IF;
        ELSE
            v_known[i] := true;
            IF s.parent_id IS NOT NULL THEN
                UPDATE job SET parent_queue = s.parent_queue, parent_id = s.parent_id, policy = s.policy
                WHERE q = c.q AND id = c.id;
                IF p_above[i] IS NULL THEN
                    SELECT * INTO p FROM job WHERE q = queue_found(s.parent_queue) AND id = s.parent_id FOR UPDATE;
                    PERFORM adopted(p, p_queues[p_at[i]], c);
                    PERFORM released_if_free(p.q, p.id, v_now);
                END IF;
            END IF;
            PERFORM tell(v_q, 'duplicated', c.id, NULL, NULL);
            IF NOT v_parents[i] THEN
                SELECT * INTO c FROM job WHERE q = c.q AND id = c.id;
                RETURN QUERY SELECT i::bigint, c.id, shown(c.state, c.priority), 1, NULL::text, i;
            END IF;
        END IF;
        IF v_parents[i] THEN
            SELECT * INTO p FROM job WHERE q = v_q AND id = s.id;
            FOR k IN 1 .. i - 1 LOOP
                IF p_above[k] = i THEN
                    SELECT * INTO c FROM job WHERE q = v_all[k] AND id = v_ids[k];
                    PERFORM adopted(p, p_queues[p_at[k]], c);
                END IF;
            END LOOP;
        END IF;
    END LOOP;
    FOR i IN 1 .. v_count LOOP
        IF v_parents[i] THEN
            PERFORM released_if_free(v_all[i], v_ids[i], v_now);
            SELECT * INTO c FROM job WHERE q = v_all[i] AND id = v_ids[i];
            RETURN QUERY SELECT i::bigint, c.id, shown(c.state, c.priority), v_known[i]::int, NULL::text, i;
        END IF;
    END LOOP;
    IF p_channel IS NOT NULL THEN
        PERFORM pg_notify(p_channel, name) FROM unnest(p_queues) name;
    END IF;
END $$;
