/* primitives.h: one of each primitive between processes. After conc.h or
   inside.h. */
typedef struct primitives {
  conc_lock lock;
  conc_rlock rlock;
  conc_rwlock rwlock;
  conc_sem sem;
  conc_cond cond;
  conc_event event;
  conc_barrier barrier;
  conc_once once;
} primitives;

/* Makes all of them new and shared, with so many units and parties. */
TEST_FN void share(primitives *p, unsigned units, int parties) {
  p->sem.value = units;
  p->sem.bound = 0;
  p->barrier.parties = parties;
  CHECK_EQ(conc_lock_init_shared(&p->lock), 0);
  CHECK_EQ(conc_rlock_init_shared(&p->rlock), 0);
  CHECK_EQ(conc_rwlock_init_shared(&p->rwlock), 0);
  CHECK_EQ(conc_sem_init_shared(&p->sem), 0);
  CHECK_EQ(conc_cond_init_shared(&p->cond), 0);
  CHECK_EQ(conc_event_init_shared(&p->event), 0);
  CHECK_EQ(conc_barrier_init_shared(&p->barrier), 0);
  CHECK_EQ(conc_once_init_shared(&p->once), 0);
}
