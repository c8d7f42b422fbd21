-- min_code: 2
--
-- What all operations share. Functions whose names end in a number are called from outside: such a name with other
-- arguments gets another number. They set the search path and keep the planner to indexes; the others run inside them.
-- A function in SQL that is no mere expression is planned at each call; so those are in PL/pgSQL.
CREATE FUNCTION instant(at bigint) RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(at, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint)
$$;

CREATE FUNCTION shown(state int, priority int) RETURNS int LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN state = 1 AND priority > 0 THEN 7 ELSE state END
$$;

CREATE FUNCTION behind() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT nextval('place') * 1024 $$;
CREATE FUNCTION ahead() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT nextval('place') * -1024 $$;

-- The number of a queue, which is made when it is not there. Its ids and the numbers of its events come from sequences,
-- for no transaction, however long it is left open, may keep others from adding.
CREATE FUNCTION queue_made(p_name text) RETURNS int LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_q int;
    v_gone boolean;
BEGIN
    SELECT q, gone INTO v_q, v_gone FROM queue WHERE name = p_name;
    IF FOUND THEN
        IF v_gone AND current_setting('workers_module.foreign', true) IS DISTINCT FROM 'on' THEN
            UPDATE queue SET gone = false WHERE q = v_q;
        END IF;
        RETURN v_q;
    END IF;
    INSERT INTO queue (name) VALUES (p_name) ON CONFLICT (name) DO NOTHING RETURNING q INTO v_q;
    IF v_q IS NULL THEN
        SELECT q INTO STRICT v_q FROM queue WHERE name = p_name;
        RETURN v_q;
    END IF;
    EXECUTE format('CREATE SEQUENCE ids_%s', v_q);
    EXECUTE format('CREATE SEQUENCE events_%s', v_q);
    UPDATE queue SET ids = ('ids_' || v_q)::regclass, events = ('events_' || v_q)::regclass WHERE q = v_q;
    INSERT INTO upkeep (q) VALUES (v_q);
    RETURN v_q;
END $$;

CREATE FUNCTION queue_found(p_name text) RETURNS int LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT q FROM queue WHERE name = p_name);
END $$;

-- Remember an id given from outside, so that none that is chosen will hit it.
CREATE FUNCTION id_noted(p_q int, p_id text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_ids regclass;
    v_last bigint;
BEGIN
    IF p_id !~ '^[0-9]{1,18}$' OR p_id::bigint < 1 THEN
        RETURN;
    END IF;
    SELECT ids INTO v_ids FROM queue WHERE q = p_q;
    EXECUTE format('SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM %s', v_ids) INTO v_last;
    IF v_last < p_id::bigint THEN
        PERFORM setval(v_ids, least(p_id::bigint, 4611686018427387904));
    END IF;
END $$;

CREATE FUNCTION id_chosen(p_q int) RETURNS text LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_ids regclass;
    v_id text;
BEGIN
    SELECT ids INTO v_ids FROM queue WHERE q = p_q;
    LOOP
        v_id := nextval(v_ids)::text;
        EXIT WHEN NOT EXISTS (SELECT 1 FROM job WHERE q = p_q AND id = v_id);
    END LOOP;
    RETURN v_id;
END $$;

-- The number of a set of tags, new or not; 0 is no tags.
CREATE FUNCTION tagset_made(p_q int, p_tags text[]) RETURNS int LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_id int;
BEGIN
    IF p_tags IS NULL OR p_tags = '{}' THEN
        RETURN 0;
    END IF;
    LOOP
        SELECT id INTO v_id FROM tagset WHERE q = p_q AND tags = p_tags;
        EXIT WHEN FOUND;
        INSERT INTO tagset (q, tags) VALUES (p_q, p_tags) ON CONFLICT (q, tags) DO NOTHING RETURNING id INTO v_id;
        EXIT WHEN v_id IS NOT NULL;
    END LOOP;
    RETURN v_id;
END $$;

-- Change the counters of a queue: an array indexed by the states 1 to 7. A transaction of the application's may stay open
-- for minutes, so it counts in a row of its own, which a sweep folds into the others.
CREATE FUNCTION counted(p_q int, d bigint[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_slot bigint := pg_backend_pid() % 16;
BEGIN
    IF current_setting('workers_module.foreign', true) = 'on' THEN
        v_slot := 16 + nextval('place');
    ELSE
        UPDATE tally SET
            waiting = waiting + d[1], delayed = delayed + d[2], active = active + d[3], completed = completed + d[4],
            failed = failed + d[5], parked = parked + d[6], prioritized = prioritized + d[7]
        WHERE q = p_q AND slot = v_slot;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    INSERT INTO tally AS t (q, slot, waiting, delayed, active, completed, failed, parked, prioritized)
    VALUES (p_q, v_slot, d[1], d[2], d[3], d[4], d[5], d[6], d[7])
    ON CONFLICT (q, slot) DO UPDATE SET
        waiting = t.waiting + excluded.waiting, delayed = t.delayed + excluded.delayed,
        active = t.active + excluded.active, completed = t.completed + excluded.completed,
        failed = t.failed + excluded.failed, parked = t.parked + excluded.parked,
        prioritized = t.prioritized + excluded.prioritized;
END $$;

CREATE FUNCTION zeros() RETURNS bigint[] LANGUAGE sql IMMUTABLE AS $$ SELECT '{0,0,0,0,0,0,0}'::bigint[] $$;

-- Move one job from a state (null: it is new) to another (null: it goes) in the counters.
CREATE FUNCTION recounted(p_q int, p_from int, p_to int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    d bigint[] := zeros();
BEGIN
    IF p_from IS NOT NULL THEN d[p_from] := d[p_from] - 1; END IF;
    IF p_to IS NOT NULL THEN d[p_to] := d[p_to] + 1; END IF;
    PERFORM counted(p_q, d);
END $$;

-- How many jobs of a queue are in each state, indexed by 1 to 7.
CREATE FUNCTION counts_of(p_q int) RETURNS bigint[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT ARRAY[
        coalesce(sum(waiting), 0), coalesce(sum(delayed), 0), coalesce(sum(active), 0), coalesce(sum(completed), 0),
        coalesce(sum(failed), 0), coalesce(sum(parked), 0), coalesce(sum(prioritized), 0)]::bigint[]
        FROM tally WHERE q = p_q);
END $$;

-- Delete the rows whose events all lie outside the cap, and write down up to where.
CREATE FUNCTION events_trimmed(p_q int) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_last bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended(current_schema() || '.trim', p_q)) THEN
        RETURN;
    END IF;
    SELECT max(n) INTO v_last FROM (
        SELECT e.n, sum(e.size) OVER (ORDER BY e.n DESC) - e.size AS newer
        FROM event e WHERE e.q = p_q
    ) s WHERE newer >= (SELECT event_cap FROM queue WHERE q = p_q);
    IF v_last IS NOT NULL THEN
        DELETE FROM event WHERE q = p_q AND n <= v_last;
        UPDATE upkeep SET trimmed = greatest(trimmed, v_last) WHERE q = p_q;
    END IF;
END $$;

-- Write events. Trimming at each call would cost a look into the table each time; a little over the cap does no harm.
CREATE FUNCTION written(p_q int, p_events told[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF cardinality(p_events) > 0 THEN
        PERFORM written(p_q, w.events, cardinality(p_events), array_agg(u.kind ORDER BY u.o), array_agg(u.id ORDER BY u.o),
                array_agg(u.a ORDER BY u.o), array_agg(u.b ORDER BY u.o))
            FROM unnest(p_events) WITH ORDINALITY u(kind, id, a, b, o), queue w WHERE w.q = p_q GROUP BY w.events;
    END IF;
END $$;

-- The same for who knows where their numbers come from.
CREATE FUNCTION written(p_q int, p_numbers regclass, p_size int, p_kinds text[], p_ids text[], p_a bytea[], p_b text[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_n bigint;
BEGIN
    -- A transaction has its id before the number: by that readers know which holes may still be filled.
    v_n := CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval(p_numbers) END;
    INSERT INTO event (q, n, size, kinds, ids, a, b) VALUES (p_q, v_n, p_size, p_kinds, p_ids, p_a, p_b);
    IF v_n % 128 = 0 AND current_setting('workers_module.foreign', true) IS DISTINCT FROM 'on' THEN
        PERFORM events_trimmed(p_q);
    END IF;
END $$;

-- Write one event, and remember that the queue has something new: `news` tells of them at the end of the call.
CREATE FUNCTION tell(p_q int, p_kind text, p_id text, p_a bytea, p_b text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM written(p_q, ARRAY[ROW(p_kind, p_id, p_a, p_b)::told]);
    PERFORM remembered(p_q);
END $$;

CREATE FUNCTION remembered(p_q int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_news text := coalesce(current_setting('workers_module.news', true), '');
BEGIN
    IF position(',' || p_q || ',' IN v_news) = 0 THEN
        PERFORM set_config('workers_module.news', v_news || ',' || p_q || ',', true);
    END IF;
END $$;

CREATE FUNCTION news_begun(p_foreign boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('workers_module.news', '', true);
    PERFORM set_config('workers_module.foreign', CASE WHEN p_foreign THEN 'on' ELSE 'off' END, true);
END $$;

-- The names of the queues whose jobs or events changed in this call beside those it was about.
CREATE FUNCTION news() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    v_news text := coalesce(current_setting('workers_module.news', true), '');
BEGIN
    IF v_news = '' THEN
        RETURN '{}';
    END IF;
    RETURN ARRAY(SELECT name FROM queue
        WHERE q = ANY (string_to_array(trim(BOTH ',' FROM replace(v_news, ',,', ',')), ',')::int[]));
END $$;

CREATE FUNCTION raw(p_text text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$ SELECT convert_to(p_text, 'UTF8') $$;

-- Store a job under its id and decide its place, with its events and counters; its state, or null when the id is taken.
CREATE FUNCTION placed(p_q int, p_n bigint, s spec, p_parked boolean, p_now bigint) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    v_stamp bigint := coalesce(s.stamp, p_now);
    v_due bigint := s.due;
    v_delay bigint := 0;
    v_state int := 1;
    v_seq bigint;
BEGIN
    IF v_due IS NULL AND s.delay > 0 THEN
        v_due := v_stamp + s.delay;
    END IF;
    IF v_due <= p_now THEN
        v_due := NULL;
    END IF;
    IF p_parked THEN
        v_state := 6;
        v_delay := greatest(0, coalesce(v_due - v_stamp, 0));
        v_due := NULL;
    ELSIF v_due IS NOT NULL THEN
        v_state := 2;
    END IF;
    v_seq := CASE WHEN v_state = 1 AND s.lifo AND s.priority = 0 THEN ahead() ELSE behind() END;
    INSERT INTO job (n, q, state, tagset, priority, seq, due, added, max_attempts, delay, lifo, on_crash, policy,
        parent_queue, parent_id, id, name, dedup, schedule, opts, data)
    VALUES (p_n, p_q, v_state, tagset_made(p_q, s.tags), s.priority, v_seq, v_due, v_stamp, s.max_attempts, v_delay,
        s.lifo, s.on_crash, s.policy, s.parent_queue, s.parent_id, s.id, s.name, s.dedup, s.schedule, s.opts, s.data)
    ON CONFLICT (q, id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM written(p_q, ARRAY[
        ROW('added', s.id, s.name, NULL)::told,
        CASE v_state
            WHEN 6 THEN ROW('waiting-children', s.id, NULL, NULL)::told
            WHEN 2 THEN ROW('delayed', s.id, raw(v_due::text), NULL)::told
            ELSE ROW('waiting', s.id, NULL, NULL)::told
        END]);
    PERFORM remembered(p_q);
    PERFORM recounted(p_q, NULL, shown(v_state, s.priority));
    RETURN shown(v_state, s.priority);
END $$;

-- --- parents and children ---------------------------------------------------------------------------------------------

-- Note what became of a child, known or new.
CREATE FUNCTION dep_put(p job, p_queue text, p_id text, p_state int, p_value bytea, p_reason bytea)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_old int;
BEGIN
    SELECT state INTO v_old FROM dep WHERE parent = p.n AND queue = p_queue AND id = p_id;
    IF v_old IS NULL THEN
        INSERT INTO dep (parent, i, queue, id, state, value, reason)
        SELECT n, children, p_queue, p_id, p_state, p_value, p_reason FROM job WHERE q = p.q AND id = p.id;
    ELSE
        UPDATE dep SET state = p_state, value = p_value, reason = p_reason
        WHERE parent = p.n AND queue = p_queue AND id = p_id;
    END IF;
    UPDATE job SET
        children = children + (v_old IS NULL)::int,
        pending = pending + (p_state = 0)::int - (coalesce(v_old, 9) = 0)::int,
        broken = broken + (p_state = 2)::int - (coalesce(v_old, 9) = 2)::int
    WHERE q = p.q AND id = p.id;
END $$;

-- Make a stored job a child: a completed one hands its result over, any other is pending unless it is known.
CREATE FUNCTION adopted(p job, p_queue text, c job) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM 1 FROM job WHERE q = p.q AND id = p.id FOR UPDATE;
    IF c.state = 4 THEN
        PERFORM dep_put(p, p_queue, c.id, 1, c.result, NULL);
    ELSIF NOT EXISTS (SELECT 1 FROM dep WHERE parent = p.n AND queue = p_queue AND id = c.id) THEN
        PERFORM dep_put(p, p_queue, c.id, 0, NULL, NULL);
    END IF;
END $$;

-- The job that stands where the parent of another was, locked; its n is null when there is none.
CREATE FUNCTION living_parent(c job) RETURNS job LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    p job;
BEGIN
    IF c.parent_queue IS NOT NULL THEN
        SELECT * INTO p FROM job WHERE q = queue_found(c.parent_queue) AND id = c.parent_id FOR UPDATE;
    END IF;
    RETURN p;
END $$;

-- The parent of a job, locked, if the job is pending there.
CREATE FUNCTION waiting_parent(p_queue text, c job) RETURNS job LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    p job := living_parent(c);
BEGIN
    IF p.n IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM dep WHERE parent = p.n AND queue = p_queue AND id = c.id AND state = 0) THEN
        p := NULL;
    END IF;
    RETURN p;
END $$;

-- Make a parent ready, or delayed when it was added with a delay (wire format, section 9.3).
CREATE FUNCTION released(p job, p_now bigint, p_silent boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF p.delay > 0 THEN
        UPDATE job SET state = 2, seq = behind(), due = p_now + p.delay, delay = 0
        WHERE q = p.q AND id = p.id;
        PERFORM recounted(p.q, shown(p.state, p.priority), 2);
        IF NOT p_silent THEN
            PERFORM tell(p.q, 'delayed', p.id, raw((p_now + p.delay)::text), NULL);
        END IF;
    ELSE
        UPDATE job SET state = 1, seq = CASE WHEN p.priority > 0 THEN behind() ELSE ahead() END, due = NULL, delay = 0
        WHERE q = p.q AND id = p.id;
        PERFORM recounted(p.q, shown(p.state, p.priority), shown(1, p.priority));
        IF NOT p_silent THEN
            PERFORM tell(p.q, 'waiting', p.id, NULL, CASE WHEN p.state = 2 THEN 'delayed' ELSE 'waiting-children' END);
        END IF;
    END IF;
    PERFORM remembered(p.q);
END $$;

CREATE FUNCTION released_if_free(p_queue int, p_id text, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    p job;
BEGIN
    SELECT * INTO p FROM job WHERE q = p_queue AND id = p_id FOR UPDATE;
    IF p.state = 6 AND p.pending = 0 THEN
        PERFORM released(p, p_now);
    END IF;
END $$;

-- Take a pending child off its parent's list.
CREATE FUNCTION forgotten(p job, p_queue text, p_id text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM dep WHERE parent = p.n AND queue = p_queue AND id = p_id;
    UPDATE job SET pending = pending - 1 WHERE q = p.q AND id = p.id;
END $$;

CREATE FUNCTION child_completed(p_queue text, c job, p_result bytea, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    p job := waiting_parent(p_queue, c);
BEGIN
    IF p.n IS NOT NULL THEN
        PERFORM dep_put(p, p_queue, c.id, 1, p_result, NULL);
        PERFORM released_if_free(p.q, p.id, p_now);
    END IF;
END $$;

-- Let the final failure of a child have the effect its policy says (wire format, section 9.4):
-- 0 the parent fails, 1 it goes on, 2 the child is ignored, 3 it is removed.
CREATE FUNCTION child_failed(p_queue text, c job, p_reason bytea, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    p job := waiting_parent(p_queue, c);
BEGIN
    IF p.n IS NULL THEN
        RETURN;
    END IF;
    IF c.policy = 3 THEN
        PERFORM forgotten(p, p_queue, c.id);
        PERFORM released_if_free(p.q, p.id, p_now);
    ELSIF c.policy = 2 THEN
        PERFORM dep_put(p, p_queue, c.id, 3, NULL, p_reason);
        PERFORM released_if_free(p.q, p.id, p_now);
    ELSIF c.policy = 1 THEN
        PERFORM dep_put(p, p_queue, c.id, 3, NULL, p_reason);
        IF p.state = 6 THEN
            PERFORM released(p, p_now);
        END IF;
    ELSE
        PERFORM dep_put(p, p_queue, c.id, 2, NULL, p_reason);
        IF p.state NOT IN (4, 5) THEN
            UPDATE job SET deferred = 'child ' || p_queue || ':' || c.id || ' failed' WHERE q = p.q AND id = p.id;
        END IF;
        IF p.state = 6 THEN
            PERFORM released(p, p_now);
        ELSIF p.state = 2 THEN
            p.delay := 0;
            PERFORM released(p, p_now);
        END IF;
    END IF;
END $$;

-- Take a job that is removed or detached off the list of the parent that waits for it.
CREATE FUNCTION child_gone(p_queue text, c job, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    p job := waiting_parent(p_queue, c);
BEGIN
    IF p.n IS NOT NULL THEN
        PERFORM forgotten(p, p_queue, c.id);
        PERFORM released_if_free(p.q, p.id, p_now);
    END IF;
END $$;

-- --- ends and removals ------------------------------------------------------------------------------------------------

-- Free the deduplication key of a job that ended, or add the call that was kept for this moment.
CREATE FUNCTION key_freed(j job, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    d dedup;
BEGIN
    SELECT * INTO d FROM dedup WHERE q = j.q AND key = j.dedup FOR UPDATE;
    IF d.id IS DISTINCT FROM j.id THEN
        RETURN;
    END IF;
    IF (d.next).id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM job WHERE q = j.q AND id = (d.next).id) THEN
        UPDATE dedup SET id = (d.next).id, next = NULL WHERE q = j.q AND key = j.dedup;
        PERFORM placed(j.q, nextval('place'), d.next, false, p_now);
    ELSIF d.until IS NULL THEN
        DELETE FROM dedup WHERE q = j.q AND key = j.dedup;
    END IF;
END $$;

-- Delete a job with all that hangs on it alone; neither parents nor deduplication keys, and no events.
CREATE FUNCTION deleted(j job) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM job WHERE q = j.q AND id = j.id;
    IF j.logged > 0 THEN
        DELETE FROM log WHERE n = j.n;
    END IF;
    IF j.children > 0 THEN
        DELETE FROM dep WHERE parent = j.n;
    END IF;
    PERFORM recounted(j.q, shown(j.state, j.priority), NULL);
END $$;

-- Delete the oldest ended jobs: at most p_limit that ended no later than p_before, looking from p_from on. How many, and
-- when the last one had ended.
CREATE FUNCTION oldest_deleted(p_q int, p_state int, p_from bigint, p_before bigint, p_limit bigint, OUT gone int,
    OUT newest bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_hung bigint[];
    v_told boolean;
BEGIN
    IF p_state = 4 THEN
        WITH old AS (
            DELETE FROM job WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM job WHERE q = p_q AND state = 4 AND ended BETWEEN p_from AND p_before
                ORDER BY ended, seq LIMIT p_limit FOR UPDATE SKIP LOCKED))
            RETURNING n, ended, logged, children
        )
        SELECT count(*), max(ended), array_agg(n) FILTER (WHERE logged > 0 OR children > 0) INTO gone, newest, v_hung
        FROM old;
    ELSE
        WITH old AS (
            DELETE FROM job WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM job WHERE q = p_q AND state = 5 AND ended BETWEEN p_from AND p_before
                ORDER BY ended, seq LIMIT p_limit FOR UPDATE SKIP LOCKED))
            RETURNING n, ended, logged, children
        )
        SELECT count(*), max(ended), array_agg(n) FILTER (WHERE logged > 0 OR children > 0) INTO gone, newest, v_hung
        FROM old;
    END IF;
    IF gone > 0 THEN
        v_told := counted(p_q, CASE p_state WHEN 4 THEN ARRAY[0, 0, 0, -gone, 0, 0, 0]
            ELSE ARRAY[0, 0, 0, 0, -gone, 0, 0] END) IS NOT NULL;
    END IF;
    IF v_hung IS NOT NULL THEN
        DELETE FROM log WHERE n = ANY (v_hung);
        DELETE FROM dep WHERE parent = ANY (v_hung);
    END IF;
END $$;

-- Leave the trimming to the next sweep. The row stays locked until this call has committed: a sweep that does not see
-- what it ended leaves the row where it is.
CREATE FUNCTION untrimmed_noted(p_q int, p_state int, p_count bigint, p_age bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO untrimmed (q, pid, state, count, age)
    VALUES (p_q, pg_backend_pid(), p_state, coalesce(p_count, -1), coalesce(p_age, -1))
    ON CONFLICT (q, pid, state, count, age) DO UPDATE SET count = excluded.count;
END $$;

-- Delete the oldest ended jobs that are too many or too old; no events, and deduplication keys stay. p_from is an instant
-- before which none had ended when the caller looked last, but for the p_fresh it has ended since: when more are over than
-- those, others have come. done is false when p_limit did not do; newest is when the last one had ended that is gone.
CREATE FUNCTION retained(p_q int, p_state int, p_count bigint, p_age bigint, p_limit bigint, p_from bigint, p_fresh int,
    p_now bigint, OUT done boolean, OUT newest bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_left bigint := p_limit;
    v_over bigint := 0;
    k record;
BEGIN
    -- Two that count at the same time would each delete all that is over, and neither knows what the other one ends.
    IF NOT pg_try_advisory_xact_lock(hashtextextended(current_schema() || '.retain', p_q * 8 + p_state)) THEN
        PERFORM untrimmed_noted(p_q, p_state, p_count, p_age);
        done := true;
        RETURN;
    END IF;
    IF p_count IS NOT NULL THEN
        v_over := (SELECT sum(CASE p_state WHEN 4 THEN completed ELSE failed END) FROM tally WHERE q = p_q) - p_count;
    END IF;
    IF p_from IS NULL OR p_from > p_now OR v_over > p_fresh THEN
        p_from := -9223372036854775807;
    END IF;
    IF v_over > 0 THEN
        k := oldest_deleted(p_q, p_state, p_from, 9223372036854775807, least(v_over, v_left));
        newest := k.newest;
        v_left := v_left - k.gone;
    END IF;
    -- Those that are left are no older than the last that is gone.
    IF p_age IS NOT NULL AND v_left > 0 AND (newest IS NULL OR newest <= p_now - p_age) THEN
        k := oldest_deleted(p_q, p_state, p_from, p_now - p_age, v_left);
        newest := coalesce(k.newest, newest);
        v_left := v_left - k.gone;
    END IF;
    done := v_left > 0;
END $$;

CREATE FUNCTION previous(j job) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT (ARRAY['wait', 'delayed', 'active', 'completed', 'failed', 'waiting-children', 'prioritized'])[
        shown(j.state, j.priority)]
$$;

CREATE FUNCTION keys_dropped(j job) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF j.dedup IS NOT NULL THEN
        DELETE FROM dedup WHERE q = j.q AND key = j.dedup AND id = j.id;
    END IF;
END $$;

-- A job after its pending children, theirs before them, all locked.
CREATE FUNCTION family_of(j job) RETURNS SETOF job LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_all bigint[] := ARRAY[j.n];
    v_family job[] := ARRAY[j];
    v_stack job[] := ARRAY[j];
    v_top job;
    c job;
BEGIN
    WHILE cardinality(v_stack) > 0 LOOP
        v_top := v_stack[cardinality(v_stack)];
        v_stack := v_stack[1 : cardinality(v_stack) - 1];
        FOR c IN
            SELECT k.* FROM dep d JOIN queue w ON w.name = d.queue JOIN job k ON k.q = w.q AND k.id = d.id
            WHERE d.parent = v_top.n AND d.state = 0 ORDER BY d.i
        LOOP
            IF c.n <> ALL (v_all) THEN
                v_all := v_all || c.n;
                v_family := v_family || c;
                v_stack := v_stack || c;
            END IF;
        END LOOP;
    END LOOP;
    FOR i IN REVERSE cardinality(v_family) .. 1 LOOP
        c := v_family[i];
        RETURN QUERY SELECT * FROM job WHERE q = c.q AND id = c.id FOR UPDATE;
    END LOOP;
END $$;

-- Delete a job, with its pending children when asked for, and tell it. A parent that waits for nothing else is released.
CREATE FUNCTION removed_soft(p_queue text, j job, p_children boolean, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_family job[] := ARRAY[j];
    c job;
BEGIN
    IF p_children THEN
        v_family := ARRAY(SELECT f FROM family_of(j) f);
    END IF;
    PERFORM child_gone(p_queue, j, p_now);
    FOR i IN 1 .. cardinality(v_family) LOOP
        -- Its parent's release may have changed it: a family can be tied to itself.
        SELECT * INTO c FROM job WHERE q = (v_family[i]).q AND id = (v_family[i]).id FOR UPDATE;
        IF FOUND THEN
            PERFORM keys_dropped(c);
            PERFORM deleted(c);
            PERFORM tell(c.q, 'removed', c.id, NULL, previous(c));
        END IF;
    END LOOP;
END $$;

-- Delete a job without events. A parent in the same queue whose last pending child goes is deleted too, and so on
-- upwards; one in another queue is made ready (wire format, section 9.6).
CREATE FUNCTION removed_hard(p_queue text, j job, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    p job;
BEGIN
    PERFORM keys_dropped(j);
    PERFORM deleted(j);
    IF j.parent_queue IS NULL THEN
        RETURN;
    END IF;
    p := waiting_parent(p_queue, j);
    IF p.n IS NULL THEN
        RETURN;
    END IF;
    PERFORM forgotten(p, p_queue, j.id);
    IF p.state <> 6 OR p.pending > 1 THEN
        RETURN;
    END IF;
    IF p.q = j.q THEN
        PERFORM removed_hard(p_queue, p, p_now);
    ELSE
        PERFORM released(p, p_now, true);
    END IF;
END $$;

-- Whether a job is the one of its schedule's current slot.
CREATE FUNCTION is_current(j job) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN j.schedule IS NOT NULL AND EXISTS (
        SELECT 1 FROM schedule s WHERE s.q = j.q AND s.id = j.schedule AND j.id = 'repeat:' || s.id || ':' || s.slot);
END $$;
