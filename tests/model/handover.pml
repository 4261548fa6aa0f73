/*
 * The handover written down a second time, apart from the program: what the two daemons, and what takes up their
 * journals, are meant to do, as sequential programs, and a network, disks and hosts that break. test_spin.py has
 * spin explore all of it; handover_model.py explores the product's own machines instead, an event at a time.
 * Beyond that model a connection ends at either side by itself, what was sent stays readable at the other one or
 * is lost, and whoever takes up a journal competes with a daemon that only sleeps.
 *
 * `source` moves the guest, with PAUSES pauses at most; `destination` takes it. When they are gone, or seem so,
 * `source_recovers` is the supervisor and `migrate-src recover`; `destination_recovers` is a migrate-dst that
 * answers questions from a journal, `migrate-dst recover`, and a person who has looked. Each has the journal's
 * lock while it works. `world` is all that goes wrong, at any moment and any number of times, until `healed`: from
 * then on nothing breaks, nobody is impatient, and who would wait for ever gives up, or recovers.
 *
 * Never: two owners, a success that is lost, one that never was: the assertions. Always: once healed, one owner,
 * and a source that knows it: `ltl heals`, without any fairness, so every way leads there.
 *
 * ARBITER: with one. Then the destination's host may also be gone for ever, and still the source comes to know whose
 * the guest is.
 *
 * MUTATION_… breaks a rule of the handover; each must be found. LOST_DISK: the destination's journal may be gone;
 * then it may stay undecided for ever, but the assertions hold.
 */

#ifndef PAUSES
#define PAUSES 2
#endif

mtype:Step = { nothing,                                                     /* there is no journal */
               moving, pausing, committed, taken_back, resumed, done,       /* source */
               receiving, prepared, declined, starting, running };          /* destination */

mtype:Word = { NOBODY, HELLO, QUESTION,                                     /* what a connection begins with */
               PREPARE, GIVEN_UP, COMMIT, RUNS_THERE, TOOK_BACK,            /* to the destination */
               PREPARED, REFUSED, SAYS_PREPARED, SAYS_DECLINED, SAYS_STARTING, SAYS_UNKNOWN,
               RUNNING, START_FAILED, FORGOTTEN };                          /* to the source */

bool healed;

/* --- disks, guests, programs -------------------------------------------------------------------------------- */

mtype:Step disk_here = moving, disk_there = receiving;
bool same_boot = true;                  /* the destination's journal is of this boot of its host */
bool runs_here = true, runs_there;
bool alive = true;                      /* the guest at the source exists, running or stopped */
bool started;                           /* it was let go at the destination at some time */
bool lost;                              /* it was let go there, and went down with the host */
byte pause, number;                     /* the source's last one; the last one that was to be prepared there */

bool locked_here = true, locked_there = true;
bool killed_here, killed_there;
bool committing;                        /* the last look at the guest was taken */

mtype:Side = { NOBODYS, THIS_SIDE, THAT_SIDE };
mtype:Side decided = NOBODYS;           /* by the arbiter, for ever */
bool gone;                              /* the destination's host, for ever */

#define ONE_OWNER      (!(runs_here && runs_there))
#define KNOWN          (disk_here == resumed || disk_here == done || decided == THAT_SIDE)
#define SETTLED        (((disk_here == nothing || disk_here == moving) && \
                        (runs_here != runs_there || !alive || lost)) || (gone && KNOWN))

/* Nothing comes any more. The source waits longer: until the destination has given up, or a person has looked at a
   guest that was being started when its host went down. */
#define IMPATIENT      (!healed || timeout)
#define VERY_IMPATIENT (!healed || (timeout && (gone || (!locked_there && !TO_BE_SEEN))))
#define TO_BE_SEEN     (disk_there == starting && !runs_there && !same_boot)

/* A write to the journal; only after one that is on disk for certain is `step` what was to be written. Killed before
   its end it is torn, and the record before it counts; an error leaves either record. */
inline write_here(what) {
    if
    :: d_step { on_disk_here(what); step = what }
    :: d_step { !healed -> on_disk_here(what) }
    :: !healed
    fi
}

inline on_disk_here(what) {
    disk_here = what;
    assert(!started || (what != taken_back && what != resumed));        /* no success is lost */
    assert(started || what != done)                                     /* none is made up */
}

inline write_there(what) {
    if
    :: d_step { disk_there = what; step = what }
    :: d_step { !healed -> disk_there = what }
    :: !healed
    fi
}

/* The arbiter's word: the first claim decides. It may have decided, and give no answer. */
#define CLAIM(side, no_answer) \
    if \
    :: decide(side) \
    :: atomic { !healed -> decide(side); goto no_answer } \
    :: atomic { !healed -> goto no_answer } \
    fi

inline decide(side) {
    d_step {
        if
        :: decided == NOBODYS -> decided = side
        :: else
        fi
    }
}

inline only_if(condition) {             /* else the program leaves it as it is */
    if
    :: condition
    :: atomic { else -> goto leave }
    fi
}

/* --- the connection: made by the source, accepted by the destination, ended by either ----------------------- */

chan up = [4] of { mtype:Word, byte };
chan down = [4] of { mtype:Word, byte };
bool open = true;                       /* the source's end */
bool there = true;                      /* the destination's, perhaps of a connection that has ended here */
bool same = true;                       /* both are of one connection */
mtype:Word calling = NOBODY;            /* what a connection that is not accepted yet begins with */

#define ENDED_HERE  (!open || (!same && calling == NOBODY && empty(down)))
#define ENDED_THERE (!there || (!same && empty(up)))

inline drain(queue) {
    do
    :: nempty(queue) -> queue?_,_
    :: empty(queue) -> break
    od
}

inline hang_up_here() { d_step { drain(down); open = false; same = false } }

inline hang_up_there() { d_step { drain(up); there = false; same = false } }

inline connect(first) { d_step { drain(down); open = true; same = false; calling = first } }

inline accept() { d_step { drain(up); there = true; same = open; calling = NOBODY } }

inline tell_there(what, value) {
    d_step {
        if
        :: same -> assert(nfull(up)); up!what,value
        :: else
        fi
    }
}

inline tell_here(what, value) {
    d_step {
        if
        :: same -> assert(nfull(down)); down!what,value
        :: else
        fi
    }
}

/* --- the source --------------------------------------------------------------------------------------------- */

inline resume_guest() { d_step { runs_here = alive; assert(ONE_OWNER) } }

/* From `committed` on: ask, until the destination has said what became of it and knows that this is known. */
inline settle_here() {
again:
    do
#ifdef MUTATION_RESUME_AFTER_COMMIT
    :: atomic { ENDED_HERE && step == committed -> resume_guest(); goto leave }
#else
    :: atomic { ENDED_HERE && step == committed -> connect(QUESTION) }
#endif
    :: atomic { ENDED_HERE && step != committed -> goto leave }         /* the journal stays */
#ifdef ARBITER
    :: atomic { VERY_IMPATIENT && step == committed -> hang_up_here() };
        CLAIM(THIS_SIDE, leave);
        only_if(decided == THIS_SIDE);                                  /* else the destination's, if it says so or not */
        take_back()
    :: atomic { VERY_IMPATIENT && step != committed -> goto leave }
#else
    :: atomic { VERY_IMPATIENT -> goto leave }                          /* the same, or undecided */
#endif
    :: down?PREPARED,_                                                  /* late */
    :: down?REFUSED,_
    :: down?SAYS_STARTING,_                                             /* it says later what came of it */
    :: atomic { down?START_FAILED,_ -> goto leave }                     /* undecided */
    :: atomic { down?RUNNING,_;
            assert(step != resumed);                                    /* it runs at both sides */
            if
            :: step == done -> tell_there(RUNS_THERE, pause); goto again
            :: else
            fi };
        write_here(done);
        only_if(step == done);
        tell_there(RUNS_THERE, pause)
    :: atomic { down?SAYS_PREPARED,_;
            assert(step != done);                                       /* what runs there was never started */
            if
            :: step == committed -> tell_there(COMMIT, pause)
            :: else -> tell_there(TOOK_BACK, pause)
            fi }
    :: atomic { down?SAYS_DECLINED,_;
            assert(step != done);
            if
            :: step == resumed -> tell_there(TOOK_BACK, pause); goto again
            :: else
            fi };
        take_back()
    :: atomic { down?SAYS_UNKNOWN,_;
            if
#ifdef MUTATION_NO_RECORD_IS_ABORTED
            :: step == committed -> resume_guest(); disk_here = nothing
#else
            :: step == committed                                        /* it proves nothing: undecided */
#endif
            :: else -> disk_here = nothing                              /* it knew that this side knew */
            fi;
            goto leave }
    :: atomic { down?FORGOTTEN,_; disk_here = nothing; goto leave }
    od
}

inline take_back() {
    write_here(taken_back);
    only_if(step == taken_back);
    resume_guest();
    write_here(resumed);
    only_if(step == resumed);
    tell_there(TOOK_BACK, pause)
}

inline end_here() {
    hang_up_here();
    d_step { committing = false; killed_here = false; locked_here = false; step = nothing }
}

active proctype source() provided (!killed_there) {
    mtype:Step step = moving;

    {
idle:   do
        :: atomic { same && pause < PAUSES && alive -> pause++; break }
        :: atomic { !healed && ENDED_HERE -> connect(HELLO) }
        :: atomic { ENDED_HERE -> goto finish }
        :: down?_,_                                                     /* about a pause that was given up */
        :: atomic { VERY_IMPATIENT || pause == PAUSES || !alive -> goto finish }
        od;
#ifdef MUTATION_PAUSE_BEFORE_JOURNAL
        runs_here = false;
#endif
        if                                                      /* as write_here, but `step` may have been so */
        :: d_step { on_disk_here(pausing); step = pausing }
        :: atomic { !healed -> on_disk_here(pausing); goto give_up }
        :: atomic { !healed -> goto give_up }
        fi;
        runs_here = false;
        tell_there(PREPARE, pause);
        do
        :: atomic { down?PREPARED,eval(pause) -> break }
        :: down?PREPARED,eval(pause - 1)                                /* of the pause before */
        :: down?SAYS_DECLINED,_
        :: atomic { down?REFUSED,_ -> goto give_up }
        :: atomic { ENDED_HERE -> goto give_up }
        :: atomic { VERY_IMPATIENT -> goto give_up }
        od;
        if
        :: atomic { alive && !runs_here -> committing = true }          /* the last look */
        :: atomic { else -> goto give_up }
        fi;
#ifdef MUTATION_COMMIT_BEFORE_JOURNAL
        tell_there(COMMIT, pause);
#endif
        write_here(committed);
        only_if(step == committed);                             /* else `recover` sees what is there */
        tell_there(COMMIT, pause);
        settle_here();

give_up:
        atomic { tell_there(GIVEN_UP, pause); resume_guest() };
        if
        :: step == pausing -> write_here(moving)
        :: else
        fi;
        goto idle;

finish: if
        :: step == moving -> disk_here = nothing
        :: else                                                         /* it says `pausing`: `recover` mends that */
        fi;
leave:  atomic { end_here() }
    } unless {
        atomic { killed_here -> end_here() }
    }
}

#ifdef MUTATION_NO_LOCK
#define FREE_HERE true
#else
#define FREE_HERE !locked_here
#endif

active proctype source_recovers() provided (!killed_there) {
    mtype:Step step;

end:do
    :: atomic { FREE_HERE && disk_here != nothing && disk_here != moving && VERY_IMPATIENT ->
            locked_here = true; step = disk_here };
        {
#ifdef MUTATION_RECOVER_RESUMES
            if
            :: step == committed -> resume_guest()
            :: else
            fi;
#endif
            if
            :: step == pausing ->
                resume_guest();
                write_here(moving);
                only_if(step == moving);
                disk_here = nothing;
                goto leave
            :: step == taken_back -> resume_guest(); write_here(resumed); only_if(step == resumed)
            :: else
            fi;
            connect(QUESTION);
            settle_here();
leave:      atomic { end_here() }
        } unless {
            atomic { killed_here -> end_here() }
        }
    od
}

/* --- the destination ---------------------------------------------------------------------------------------- */

inline start() {
#ifdef MUTATION_START_BEFORE_JOURNAL
    run_command();
    write_there(starting);
#else
    write_there(starting);
    if
    :: step == starting -> run_command()
    :: atomic { else -> goto not_started }
    fi;
#endif
    say_running()
}

/* --on-commit: it starts the guest, or says that it did not, which may be wrong. */
inline run_command() {
    assert(same_boot);
    if
    :: let_go()
    :: atomic { !healed -> let_go(); goto not_started }
    :: atomic { !healed -> goto not_started }
    fi
}

inline let_go() { d_step { started = true; runs_there = !lost; assert(ONE_OWNER) } }

inline say_running() {
    write_there(running);
    atomic { step = running; tell_here(RUNNING, number) }               /* it runs, whatever the disk says */
}

inline look() {
    if
    :: runs_there
    :: !runs_there && same_boot -> run_command()
    :: atomic { else -> goto not_started }
    fi;
    say_running()
}

/* Take back what was promised, for ever. */
inline decline() {
#ifdef MUTATION_DECLINE_NOT_JOURNALLED
    step = declined
#else
    write_there(declined)
#endif
}

inline answer() {
    if
    :: step == prepared && same_boot -> tell_here(SAYS_PREPARED, number)
    :: step == prepared && !same_boot -> decline(); say_declined()
    :: step == declined -> say_declined()
    :: step == starting -> tell_here(SAYS_STARTING, number); look()
    :: step == running -> tell_here(RUNNING, number)
    fi
}

inline say_declined() {
    d_step {
        if
        :: step == declined -> tell_here(SAYS_DECLINED, number)
        :: else
        fi
    }
}

inline commit_came() {
    if
    :: step == prepared ->
#ifdef ARBITER
        CLAIM(THAT_SIDE, not_started);
        if
#ifndef MUTATION_ARBITER_NOT_HEEDED
        :: decided == THIS_SIDE -> decline(); say_declined()
#endif
        :: else -> start()
        fi
#else
        start()
#endif
    :: else -> answer()
    fi
}

inline end_there() {
    hang_up_there();
    d_step { killed_there = false; locked_there = false; step = nothing }
}

active proctype destination() provided (!killed_here && !gone) {
    mtype:Step step = receiving;

    {
again:  do
        :: atomic { calling == HELLO && step != running -> accept();
                if
                :: step == prepared
                :: else -> goto again
                fi };
            decline()
        :: atomic { calling == QUESTION && (step == prepared || step == running) -> accept();
                if
                :: number == pause
                :: else -> tell_here(SAYS_UNKNOWN, pause); goto again
                fi };
            answer()
        :: atomic { calling == QUESTION && step != prepared && step != running && !healed ->
                calling = NOBODY }                                      /* busy */
        :: atomic { up?PREPARE,number;
                if
                :: step == receiving || step == declined
                :: else -> goto refuse                                  /* an older promise was not taken back */
                fi };
            write_there(prepared);
            if
            :: step == prepared -> tell_here(PREPARED, number)
            :: step == prepared && ENDED_THERE -> decline()             /* not said: it was not committed */
            :: step != prepared -> goto refuse
            fi
        :: atomic { up?GIVEN_UP,_;
                if
                :: step == prepared
                :: else -> goto again
                fi };
            decline()
        :: up?COMMIT,eval(number); commit_came()
        :: atomic { up?RUNS_THERE,_; assert(step == running);
                disk_there = nothing; tell_here(FORGOTTEN, number); goto leave }
        :: atomic { there && ENDED_THERE -> hang_up_there() }
        :: atomic { IMPATIENT -> goto refuse }
        od;

refuse: if
        :: step == running                                              /* it waits no longer; the journal stays */
        :: step == prepared -> decline(); say_declined()
        :: step == declined -> tell_here(REFUSED, number)
        :: step == receiving -> atomic { disk_there = nothing; tell_here(REFUSED, number) }
        fi;
        goto leave;

not_started:
        tell_here(START_FAILED, number);
leave:  atomic { end_there() }
    } unless {
        atomic { killed_there -> end_there() }
    }
}

active proctype destination_recovers() provided (!killed_here && !gone) {
    mtype:Step step;
    bool asked;

end:do
    :: atomic { !locked_there && calling == HELLO -> calling = NOBODY;  /* it has not committed: that pause is over */
            if
            :: disk_there == prepared || disk_there == declined -> disk_there = nothing
            :: else
            fi }
    :: atomic { !locked_there && calling == QUESTION && (disk_there == nothing || number != pause) ->
            accept(); tell_here(SAYS_UNKNOWN, pause); hang_up_there() }
    :: atomic { !locked_there && disk_there == starting && !runs_there && IMPATIENT ->  /* a person who has looked */
            disk_there = (lost -> running : declined) }
    :: atomic {
            if
            :: !locked_there && calling == QUESTION && disk_there != nothing && number == pause ->
                accept(); asked = true
            :: !locked_there && disk_there == prepared && IMPATIENT
            :: !locked_there && disk_there == starting && !(healed && TO_BE_SEEN) && IMPATIENT
            fi;
            locked_there = true; step = disk_there };
        {
            if
            :: asked -> asked = false; answer()
            :: !asked && step == prepared -> decline(); goto leave
            :: !asked && step == starting -> look(); goto leave
            fi;
            do
            :: up?COMMIT,eval(number); commit_came()
            :: atomic { up?RUNS_THERE,_; assert(step == running);
                    disk_there = nothing; tell_here(FORGOTTEN, number); goto leave }
            :: up?TOOK_BACK,_;
                if
                :: step == prepared -> decline()
                :: else -> assert(step == declined)
                fi;
                only_if(step == declined);
                atomic { disk_there = nothing; tell_here(FORGOTTEN, number); goto leave }
            :: atomic { ENDED_THERE -> goto leave }
            :: atomic { IMPATIENT -> goto leave }
            od;

not_started:
            tell_here(START_FAILED, number);
leave:      atomic { end_there() }
        } unless {
            atomic { killed_there -> end_there(); asked = false }
        }
    od
}

/* --- what goes wrong ---------------------------------------------------------------------------------------- */

active proctype world() provided (!killed_here && !killed_there) {
end:do
    :: atomic { healed = true; break }
#ifdef ARBITER
    :: atomic { healed = true; gone = true; runs_there = false; hang_up_there(); break }
#endif
    :: atomic { open -> hang_up_here() }
    :: atomic { there -> hang_up_there() }
    :: atomic { !same && nempty(up) -> drain(up) }
    :: atomic { !same && nempty(down) -> drain(down) }
    :: d_step { calling != NOBODY -> calling = NOBODY }
    :: d_step { locked_here -> killed_here = true }
    :: d_step { locked_there -> killed_there = true }
    :: d_step { alive -> alive = false; runs_here = false; killed_here = locked_here }  /* the hosts, started anew */
    :: d_step { lost = lost || runs_there; runs_there = false; same_boot = false; killed_there = locked_there }
    :: d_step { alive && !runs_here -> alive = false }                  /* it dies while it is paused */
    :: d_step { alive && !runs_here && !committing && (disk_here == moving || disk_here == pausing) ->
            runs_here = true; assert(ONE_OWNER) }                       /* somebody's SIGCONT, before the commit */
#ifdef LOST_DISK
    :: atomic { !locked_there -> disk_there = nothing }
#endif
    od
}

ltl heals { [] (healed -> <> SETTLED) }
